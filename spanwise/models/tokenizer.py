"""The part of a tokenizer that spanwise uses, and text that is to stay text.

A tokenizer reads its added tokens, markers such as ``<|im_end|>``, ``[INST]`` or ``<tool_call>``,
wherever they stand. In text from elsewhere, a question or what a tool answers, they would end a
message or open a call. There a ``BREAK`` is put inside each; the chat template writes its own
markers around, and ``encoded`` has the tokenizer begin anew at every break.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

BREAK = "\ufdd0"
"""A place at which the tokenizer sees the end of its text. Unicode has no character there."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that environments, samplers and rollouts use."""

    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Any, **options: Any) -> str: ...


class ChatOfPlainText:
    """A tokenizer whose chat template is given messages and tools as ``plain_text``."""

    def __init__(self, tokenizer: Any, own_tags: Collection[str] = ()) -> None:
        self._tokenizer, self._own_tags = tokenizer, own_tags

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._tokenizer.encode(text, **options)

    def decode(self, token_ids: Any, **options: Any) -> str:
        return self._tokenizer.decode(token_ids, **options)

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        if "tools" in options:
            options["tools"] = self._plain(options["tools"])
        return self._tokenizer.apply_chat_template(self._plain(conversation), *args, **options)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, str):
            return plain_text(self._tokenizer, value, self._own_tags)
        if isinstance(value, Mapping):
            fields = cast("Mapping[str, Any]", value).items()
            return {name: each if name == "role" else self._plain(each) for name, each in fields}
        if isinstance(value, list | tuple):
            return [self._plain(each) for each in cast("Sequence[Any]", value)]
        return value


def encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Text that did not come from the model, to tokens, once."""
    pieces = [piece for piece in text.split(BREAK) if piece]
    return tuple(t for p in pieces for t in tokenizer.encode(p, add_special_tokens=False))


def plain_text(tokenizer: Any, text: str, own_tags: Collection[str] = ()) -> str:
    """The text with a ``BREAK`` inside all that the tokenizer reads as one of its added tokens.

    The tokenizer itself is asked. Its added tokens that are not special and only words, white
    space or one character are text, and stay; a special one of one character is left out.

    Args:
      tokenizer: One of Hugging Face; nothing is changed for one without added tokens.
      text: From a tool, a data set or an environment.
      own_tags: Added tokens that stay what they are.
    """
    text = text.replace(BREAK, "")
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    markers = {
        number: token.content
        for number, token in added.items()
        if token.content not in own_tags and (token.special or not _is_text(token.content))
    }
    return BREAK.join(_pieces(tokenizer, text, markers)) if markers else text


def _pieces(tokenizer: Any, text: str, markers: Mapping[int, str]) -> list[str]:
    """The text, cut in the middle of each marker, of those that then appear too."""
    spans = _found(tokenizer, text, markers)
    if not spans:
        return [text]
    parts, start = list[str](), 0
    for begin, end in spans:
        middle = (begin + end) // 2
        if middle > start:
            parts.append(text[start:middle])
            start = middle
        elif begin == start:
            start = end  # one character, which cannot be cut
    return [p for part in (*parts, text[start:]) for p in _pieces(tokenizer, part, markers)]


def _found(tokenizer: Any, text: str, markers: Mapping[int, str]) -> list[tuple[int, int]]:
    """Where the tokenizer reads markers, white space that it takes along included."""
    if not getattr(tokenizer, "is_fast", False):
        literal = "|".join(map(re.escape, markers.values()))
        return [match.span() for match in re.finditer(literal, text)]
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    unknown = tokenizer.unk_token_id  # also what a word is that the vocabulary lacks
    return [
        (begin, end)
        for number, (begin, end) in zip(read["input_ids"], read["offset_mapping"], strict=True)
        if number in markers and (number != unknown or markers[number] in text[begin:end])
    ]


def _is_text(content: str) -> bool:
    r"""Whether an added token is of letters, digits and white space (``▁`` too), or one character.

    Example:
      >>> [_is_text(content) for content in ("covfefe", "\n\n", "▁▁", "½", "[INST]", "<td>")]
      [True, True, True, True, False, False]
    """
    kinds = {unicodedata.category(character)[0] for character in re.sub(r"[\s▁]", "", content)}
    return len(content) == 1 or kinds <= set("LMN")
