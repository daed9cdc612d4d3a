r"""Reading the tool calls of a turn: JSON in tags, one call or several.

    <think> ... </think> <tool_call>
    {"name": "add", "arguments": {"amount": 3}}
    </tool_call>

The format of Hermes, Qwen2.5, Qwen3 and others. A turn without a call is the agent's answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from spanwise.errors import SpanwiseError, one_line

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TAG = re.compile(r"</?tool_call>|</?tool_response>")
_MARKER = re.compile(r"(?:<\|[a-z_]+\|>|</s>)\s*$")


@dataclass(frozen=True)
class ToolCall:
    """One call that a model wrote, or why it cannot be read."""

    name: str
    arguments: Mapping[str, Any]
    fault: str = ""
    """What is wrong with it, in words for the model; empty if nothing is."""


def calls_in(text: str) -> tuple[ToolCall, ...]:
    r"""The calls of a turn, in order; none where the turn is an answer.

    What stands in a thought is no call. ``arguments`` may be JSON in a string, as some models
    write it.

    Example:
      >>> calls_in('<tool_call> {"name": "add", "arguments": {"amount": 3}} </tool_call>')
      (ToolCall(name='add', arguments={'amount': 3}, fault=''),)
      >>> calls_in("<think> <tool_call> or not? </think> It is 7.")
      ()
      >>> calls_in("<tool_call> add 3 </tool_call>")[0].fault
      'the call is not JSON: Expecting value: line 1 column 1 (char 0)'
    """
    said = text.rpartition("</think>")[2]
    bodies = _CALL.findall(said)
    if not _TAG.search(said):
        return ()
    rest = _CALL.sub("", said)
    if not bodies or _TAG.search(rest):
        return (ToolCall("", {}, "the tags of the call do not match"),)
    return tuple(_call(body.strip()) for body in bodies)


def answer_in(text: str) -> str:
    r"""The words of a turn that calls nothing, without its thought and end marker.

    Example:
      >>> answer_in("<think> 3 and 4 </think>\nIt is 7.<|im_end|>")
      'It is 7.'
    """
    return _MARKER.sub("", text.rpartition("</think>")[2]).strip()


def _call(body: str) -> ToolCall:
    try:
        call: Any = json.loads(body, object_pairs_hook=_without_repeats)
        if isinstance(call, dict) and isinstance(cast(Any, call).get("arguments"), str):
            call["arguments"] = json.loads(
                cast(Any, call)["arguments"], object_pairs_hook=_without_repeats
            )
    except (ValueError, RecursionError) as error:
        return ToolCall("", {}, f"the call is not JSON: {one_line(str(error), 200)}")
    if not isinstance(call, dict) or not isinstance(cast(Any, call).get("name"), str):
        return ToolCall("", {}, "the call is not an object with a name and arguments")
    name, arguments = cast(Any, call)["name"], cast(Any, call).get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, "the arguments are not an object")
    return ToolCall(name, cast("dict[str, Any]", arguments))


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) < len(pairs):
        raise SpanwiseError("a name is given twice")
    return fields
