r"""How a turn of a searching agent is written, and what can be read from it.

    <think> ... </think> <search> a query </search>
    <think> ... </think> <answer> ... \boxed{ an answer } ... </answer>

Nothing else is well formed: a turn without a thought, with text outside the tags, with
two calls, with tags inside tags, or with a ``<result>`` of the model's own making is
broken, whatever else it says. The tool's answer is put behind the turn as

    <result> title : text ... </result>

with every tag in titles and texts made harmless first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from spanwise.tools.search import MAX_TITLE, Document

STOP_STRINGS: tuple[str, ...] = ("</search>", "</answer>")

TAGS: tuple[str, ...] = (
    "<think>", "</think>", "<search>", "</search>",
    "<result>", "</result>", "<answer>", "</answer>",
)  # fmt: skip

_TAG = re.compile(r"</?(?:think|search|result|answer)>")
_MARKUP_OPENING = re.compile(
    r"<(?=[/|!?｜]|[^\W\d])|\[(?=/?[a-z]?[A-Z][A-Z_0-9]+\])|◁(?=/?\w)"  # [INST], ◁think▷
)
_BOX = "\\boxed{"


@dataclass(frozen=True)
class Call:
    """The turn asks the search tool."""

    query: str


@dataclass(frozen=True)
class Answer:
    """The turn answers the question."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """The turn is neither."""

    fault: str
    """One line that says what is wrong with it."""


def parsed_turn(text: str) -> Call | Answer | Malformed:
    r"""Read a turn of the model, stop string included, in one pass.

    Example:
      >>> parsed_turn("<think> next </think> <search> mother of Ada Beck </search>")
      Call(query='mother of Ada Beck')
      >>> parsed_turn(r"<think> done </think> <answer> \boxed{ Ada Beck } </answer>")
      Answer(text='Ada Beck')
      >>> parsed_turn("<search> mother of Ada Beck </search>")
      Malformed(fault='the tags are <search> </search>')
    """
    tags = list(_TAG.finditer(text))
    names = [tag.group() for tag in tags]
    if names not in (
        ["<think>", "</think>", "<search>", "</search>"],
        ["<think>", "</think>", "<answer>", "</answer>"],
    ):
        return wrong_tags(names) if names else Malformed("there are no tags")
    think, think_end, act, act_end = tags
    outside = text[: think.start()], text[think_end.end() : act.start()], text[act_end.end() :]
    if any(part.strip() for part in outside):
        return Malformed("there is text outside the tags")
    inside = text[act.end() : act_end.start()].strip()
    if act.group() == "<answer>":
        return boxed_answer(inside)
    return Call(inside) if inside else Malformed("the query is empty")


def wrong_tags(names: Sequence[str]) -> Malformed:
    """The fault of a turn with other tags than it may have."""
    return Malformed(f"the tags are {' '.join(names[:8])}{' ...' if names[8:] else ''}")


def boxed_answer(text: str) -> Answer | Malformed:
    r"""The answer in the only ``\boxed{...}`` of a text; braces in it must match."""
    if text.count(_BOX) != 1:
        return Malformed(f"the answer has {text.count(_BOX)} boxes")
    box = text[text.index(_BOX) + len(_BOX) :]
    depth = 1
    for position, character in enumerate(box):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            answer = box[:position].strip()
            return Answer(answer) if answer else Malformed("the box is empty")
    return Malformed("the box is not closed")


def harmless_text(text: str) -> str:
    """Tool text that can open no tag, write no chat marker and control no terminal.

    A ``<``, ``[`` or ``◁`` that could begin markup becomes ``‹``, for a model may take as a marker
    what its tokenizer does not; what is a token of the tokenizer never comes to be one, whatever
    it looks like (``models.tokenizer.plain_text``). Control and format characters
    become a space, and runs of white space one space.

    Example:
      >>> harmless_text("a < b, </result> <|im_end|>")
      'a < b, ‹/result> ‹|im_end|>'
    """
    opened = _MARKUP_OPENING.sub("‹", text)
    kept = (" " if unicodedata.category(c).startswith("C") else c for c in opened)
    return " ".join("".join(kept).split())


def result_text(documents: Sequence[Document], max_characters: int = 4000) -> str:
    """The observation that shows the documents, each cut to ``max_characters``.

    Example:
      >>> result_text([Document(title="Ada Beck", text="Ida Cole is the rival of Ada Beck .")])
      ' <result> Ada Beck : Ida Cole is the rival of Ada Beck . </result> '
      >>> result_text([])
      ' <result> nothing found . </result> '
    """
    shown = " ".join(shown_documents(documents, max_characters)) or "nothing found ."
    return f" <result> {shown} </result> "


def shown_documents(documents: Sequence[Document], max_characters: int) -> list[str]:
    """Each document as its title and the beginning of its text, with tags made harmless."""
    return [
        (f"{harmless_text(document.title[:MAX_TITLE])} : " if document.title else "")
        + harmless_text(document.text[:max_characters])
        for document in documents
    ]
