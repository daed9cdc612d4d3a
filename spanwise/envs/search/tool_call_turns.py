r"""Tool calls in the model's own format: JSON in tags, answered by a message of the role tool.

    <think> ... </think> <tool_call>
    {"name": "search", "arguments": {"query": "..."}}
    </tool_call>

The format of Hermes, Qwen2.5, Qwen3 and others. The turn ends with ``</tool_call>``; what the
chat template puts behind it, from the end-of-turn marker to the opening of the next turn,
is the environment's. The turn itself stays the tokens that were sampled: the template is
never asked to write it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from spanwise.envs.search.xml_turns import (
    Answer,
    Call,
    Malformed,
    boxed_answer,
    shown_documents,
    wrong_tags,
)
from spanwise.errors import SpanwiseError, first_line
from spanwise.tools.search import Document

STOP_STRINGS: tuple[str, ...] = ("</tool_call>",)

TAGS: tuple[str, ...] = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip

SEARCH_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find passages that may hold what you look for.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "A short query."}},
            "required": ["query"],
        },
    },
}
"""Description of the tool for the chat template."""

_TAG = re.compile(r"</?(?:think|tool_call|tool_response)>")
_QUESTION = "Who wrote it?"
_THOUGHT, _CALL = (
    "<think>\nI do not know who wrote it.\n</think>\n\n",
    '<tool_call>\n{"name": "search", "arguments": {"query": "who wrote it"}}\n</tool_call>',
)


def parsed_tool_turn(text: str) -> Call | Answer | Malformed:
    r"""Read a turn in one pass: one call of ``search``, or a boxed answer.

    A thought may come first, and words between it and the call, but nothing after the call.

    Example:
      >>> call = '<tool_call> {"name": "search", "arguments": {"query": "Ada"}} </tool_call>'
      >>> parsed_tool_turn(call)
      Call(query='Ada')
      >>> parsed_tool_turn(r"<think> found </think> It is \boxed{Ada Beck}.")
      Answer(text='Ada Beck')
      >>> parsed_tool_turn(call.replace("search", "find"))
      Malformed(fault="there is no tool 'find'")
    """
    tags = list(_TAG.finditer(text))
    names = [tag.group() for tag in tags]
    if names[:2] == ["<think>", "</think>"]:
        if text[: tags[0].start()].strip():
            return Malformed("there is text before the thought")
        text, names = text[tags[1].end() :], names[2:]
    if not names:
        return boxed_answer(text)
    if names != ["<tool_call>", "</tool_call>"]:
        return wrong_tags(names)
    _, _, rest = text.partition("<tool_call>")
    inside, _, after = rest.partition("</tool_call>")
    return Malformed("there is text after the call") if after.strip() else _call(inside)


def _call(text: str) -> Call | Malformed:
    try:
        call: Any = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        return Malformed(f"the call is not JSON: {error}")
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return Malformed("the call is not an object of name and arguments")
    name, arguments = call["name"], cast(Any, call["arguments"])
    if name != "search":
        return Malformed(f"there is no tool {str(name)[:50]!r}")
    if not isinstance(arguments, dict) or arguments.keys() != {"query"}:
        return Malformed("search takes one argument, query")
    query = cast(Any, arguments["query"])
    if not isinstance(query, str) or not query.strip():
        return Malformed("the query is empty or no text")
    if any("\ud800" <= character <= "\udfff" for character in query):
        return Malformed("the query is no text: it has half of a character")
    return Call(query.strip())


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) < len(pairs):
        raise SpanwiseError("a name is given twice")
    return fields


def tool_result(documents: Sequence[Document], max_characters: int = 4000) -> str:
    """The content of the tool's message: the documents, with tags and markers made harmless.

    Example:
      >>> tool_result([Document(title="Ada", text="</tool_response> <|im_end|>")])
      'Ada : ‹/tool_response> ‹|im_end|>'
    """
    return "\n".join(shown_documents(documents, max_characters)) or "nothing found"


def after_turn(tokenizer: Any, content: str) -> str:
    """The template's text behind a turn with a call: the tool's message, the next opening."""
    chat = _chat((_CALL, content))
    return _rendered(tokenizer, chat)[len(_rendered(tokenizer, chat[:1]) + _CALL) :]


def check_template(tokenizer: Any) -> None:
    """Refuse a chat template under which turns cannot be put one behind another.

    A conversation must be rendered as the shorter one before it with something added: the
    model would else have seen other tokens than those it is trained on.
    """
    opening = _chat()
    bare = _attempt(tokenizer, opening, tools=False)
    prompt = _attempt(tokenizer, opening)
    if prompt == bare or SEARCH_TOOL["function"]["description"] not in prompt:
        raise _refusal("does not tell the model of tools")
    if "<tool_call>" not in prompt or '"arguments"' not in prompt:
        raise _refusal('teaches another form of calls than <tool_call> {"name", "arguments"}')
    for turns in ((_CALL, _CALL), (_THOUGHT + _CALL, _THOUGHT + _CALL)):
        before, suffix = prompt, None
        for number, turn in enumerate(turns, start=1):
            chat = _chat(*((text, f"result {i}") for i, text in enumerate(turns[:number])))
            longer = _attempt(tokenizer, chat)
            if not longer.startswith(before):
                raise _refusal("rewrites what came before when the conversation goes on")
            if not longer.startswith(before + turn):
                shown = "a thought" if turn.startswith("<think>") else "a turn"
                raise _refusal(f"does not keep {shown} of the model as it was sampled")
            added = longer[len(before + turn) :].replace(f"result {number - 1}", "{}")
            if "{}" not in added:
                raise _refusal("does not show the tool's answer")
            if suffix not in (None, added):
                raise _refusal("puts something else behind later turns")
            before, suffix = longer, added


def _chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    chat = [{"role": "user", "content": _QUESTION}]
    for text, result in turns:
        chat += [{"role": "assistant", "content": text}, {"role": "tool", "content": result}]
    return chat


def _rendered(tokenizer: Any, chat: list[dict[str, str]], *, tools: bool = True) -> str:
    return tokenizer.apply_chat_template(
        chat, tools=[SEARCH_TOOL] if tools else None, add_generation_prompt=True, tokenize=False
    )


def _attempt(tokenizer: Any, chat: list[dict[str, str]], *, tools: bool = True) -> str:
    try:
        return _rendered(tokenizer, chat, tools=tools)
    except Exception as error:  # a template may raise anything, jinja's own errors among them
        raise _refusal(f"cannot write a conversation with tools ({first_line(error)})") from error


def _refusal(fault: str) -> SpanwiseError:
    return SpanwiseError(
        f"the tokenizer's chat template {fault}; use --env.turns xml, or put another "
        "chat_template.jinja into the model's folder"
    )
