"""The words of a command line that stand before its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spanwise.errors import SpanwiseError


class UsageError(SpanwiseError):
    """The command line asks for something that is not there."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """True if help is all that is wanted."""
    return bool(arguments) and arguments[0] in ("-h", "--help")


def split_target(arguments: list[str], usage: str) -> tuple[str, list[str]]:
    """The word after the command, and the options after it; without a word, help is one."""
    words, _ = split_targets(arguments[:1], usage)
    return (str(words[0]), arguments[1:]) if words else ("", arguments)


def split_targets(arguments: list[str], usage: str) -> tuple[list[Path], list[str]]:
    """The folders after the command, and the options after them."""
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if not count and not asks_for_help(arguments):
        raise UsageError(f"use spanwise {usage} [--option value ...]")
    return [Path(word) for word in arguments[:count]], arguments[count:]


def split_name(arguments: list[str], usage: str, names: str) -> tuple[str, list[str]]:
    """As ``split_target``, for a command whose options depend on the word."""
    if asks_for_help(arguments):
        print(f"usage: spanwise {usage} [--option value ...]\n\n{names}")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"use spanwise {usage} [--option value ...]; {names}")
    return arguments[0], arguments[1:]
