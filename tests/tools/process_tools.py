"""Tools that a child process can import, and that fail in every way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from spanwise.tools.base import Tool, ToolError


@dataclass(frozen=True, kw_only=True)
class Acts(Tool):
    """Does what it is asked to."""

    deadline_s: float = 60.0

    def call(self, query: str) -> Any:
        match query.split():
            case ["backtrack"]:  # holds the interpreter lock, for years
                return re.match("(a+)+$", "a" * 60 + "b")
            case ["exit"]:
                os._exit(3)
            case ["abort"]:
                os.abort()
            case ["leave"]:
                sys.exit(4)
            case ["raise"]:
                raise ToolError("no route")
            case ["big", characters]:
                return "x" * int(characters)
            case ["bytes"]:
                return b"\x00"
            case ["print"]:
                print("x" * 1_000_000)
                return "printed"
            case ["start"]:  # a process of its own, which outlives the call
                return subprocess.Popen([sys.executable, "-c", "input()"]).pid
            case _:
                return [query.upper(), os.getpid()]


class Refuses:
    """Is sent as it is and cannot be made again."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise LookupError("not in this process")


@dataclass(frozen=True, kw_only=True)
class CannotStart(Tool):
    deadline_s: float = 60.0
    refuses: Refuses = field(default_factory=Refuses)

    def call(self, query: str) -> Any:
        return query
