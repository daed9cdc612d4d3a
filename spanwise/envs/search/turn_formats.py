"""The two ways in which a searching agent's turns are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spanwise.envs.search import tool_call_turns, xml_turns
from spanwise.envs.search.xml_turns import Answer, Call, Malformed
from spanwise.tools.search import Document


@dataclass(frozen=True, kw_only=True)
class TurnFormat:
    """How calls and answers are read, and how results are shown."""

    stop_strings: tuple[str, ...]
    """Strings at which the sampler ends a turn."""

    tags: tuple[str, ...]
    """Texts that a tokenizer must keep as they are."""

    failed: str
    """Observation after a search that failed."""

    parsed: Callable[[str], Call | Answer | Malformed]
    """Reads a turn of the model."""

    result: Callable[[Sequence[Document]], str]
    """Observation that shows the documents found."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas for the chat template."""

    rendered: Callable[[Any, str], str] = lambda tokenizer, observation: observation
    """The text that follows a turn, from the tokenizer and the observation."""

    check: Callable[[Any], None] = lambda tokenizer: None
    """Refuses a tokenizer whose chat template does not fit, by a ``SpanwiseError``."""


XML_TURNS = TurnFormat(
    stop_strings=xml_turns.STOP_STRINGS,
    tags=(*xml_turns.TAGS, "\\boxed{ }"),
    failed=" <result> the search failed , nothing found . </result> ",
    parsed=xml_turns.parsed_turn,
    result=xml_turns.result_text,
)
"""Tags of our own. The whole trajectory is one message of the assistant: any template will do."""

TOOL_CALL_TURNS = TurnFormat(
    stop_strings=tool_call_turns.STOP_STRINGS,
    tags=(*tool_call_turns.TAGS, "\\boxed{ }"),
    failed="the search failed, nothing found",
    parsed=tool_call_turns.parsed_tool_turn,
    result=tool_call_turns.tool_result,
    tools=(tool_call_turns.SEARCH_TOOL,),
    rendered=tool_call_turns.after_turn,
    check=tool_call_turns.check_template,
)
"""The model's own tool calls, and results as messages of the role tool."""
