"""The two ways in which a searching agent's turns are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from spanwise.envs.search import tool_call_turns as tool_calls
from spanwise.envs.search import xml_turns as grammar
from spanwise.envs.search.xml_turns import Answer, Call, Malformed
from spanwise.tools.search import Document


class TurnFormat(ABC):
    """How calls and answers are read, and how results are shown."""

    stop_strings: tuple[str, ...]
    tags: tuple[str, ...]
    """What a tokenizer must keep as it is."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas for the chat template."""

    failed: str
    """The observation after a search that failed."""

    @abstractmethod
    def parsed(self, text: str) -> Call | Answer | Malformed:
        """What a turn of the model says."""

    @abstractmethod
    def result(self, documents: Sequence[Document]) -> str:
        """The observation that tells the model what was found."""

    def rendered(self, observation: str, tokenizer: Any) -> str:
        """An observation as the text that follows the turn."""
        return observation

    def check(self, tokenizer: Any) -> None:
        """Refuse a chat template that does not fit; a ``ValueError`` of one line."""


class XMLTurns(TurnFormat):
    """Tags of our own, results between ``<result>`` tags: see ``grammar``.

    The whole trajectory is one message of the assistant; any chat template will do.
    """

    stop_strings = grammar.STOP_STRINGS
    tags = (*grammar.TAGS, "\\boxed{ }")
    failed = " <result> the search failed , nothing found . </result> "

    def parsed(self, text: str) -> Call | Answer | Malformed:
        return grammar.parsed_turn(text)

    def result(self, documents: Sequence[Document]) -> str:
        return grammar.result_text(documents)


class ToolCallTurns(TurnFormat):
    """The model's own tool calls, results as messages of the role tool: see ``tool_calls``."""

    stop_strings = tool_calls.STOP_STRINGS
    tags = (*tool_calls.TAGS, "\\boxed{ }")
    tools = (tool_calls.SEARCH_TOOL,)
    failed = "the search failed, nothing found"

    def parsed(self, text: str) -> Call | Answer | Malformed:
        return tool_calls.parsed_tool_turn(text)

    def result(self, documents: Sequence[Document]) -> str:
        return tool_calls.tool_result(documents)

    def rendered(self, observation: str, tokenizer: Any) -> str:
        return tool_calls.after_turn(tokenizer, observation)

    def check(self, tokenizer: Any) -> None:
        tool_calls.check_template(tokenizer)
