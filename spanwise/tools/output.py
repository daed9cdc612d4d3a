"""Text from tools, made fit to be shown to a model."""

from __future__ import annotations

import re

MAX_CHARACTERS = 20_000
"""Longest observation that is shown to a model."""

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # a terminal's control sequence as a whole
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"  # surrogates: no tokenizer takes them
)


def shown_text(text: str) -> str:
    r"""The text without terminal sequences and control characters other than ``\n`` and ``\t``.

    Example:
      >>> shown_text("\x1b[31mred\x1b[0m\ta\x00b\n")
      'red\tab\n'
    """
    return _CONTROL.sub("", text)


def shortened_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text, or its beginning and end with a note of how much is left out between them.

    The end is kept because it often closes what the beginning opened. The note does not count
    towards the limit.

    Example:
      >>> shortened_text("<result>" + "x" * 1000 + "</result>", limit=80)[-41:]
      'xxxx [937 characters left out] x</result>'
    """
    if len(text) <= limit:
        return text
    tail = limit // 8
    note = f" [{len(text) - limit} characters left out] "
    return text[: limit - tail] + note + text[len(text) - tail :]
