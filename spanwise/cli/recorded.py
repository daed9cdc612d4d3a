"""What a run folder says of how its run was started: data, until the user vouches for it.

A folder may come from somebody else. The recipe and the arguments that it records may name
code, ``FILE.py:NAME`` or ``package.module:NAME``, which is run with the user's rights: each such
word must be given again, with ``--allow``. All else is a setting, and shown before it is used.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from spanwise import recipes
from spanwise.cli.words import UsageError
from spanwise.errors import printable
from spanwise.run.folder import RunFolder, refuse_links_out

_CODE = re.compile(r"[^:]+:[A-Za-z_]\w*")


def recorded_start(folder: Path, allowed: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe and the arguments that the run in ``folder`` was started with.

    They are shown on stderr.

    Args:
      folder: A run folder.
      allowed: Words that the user vouches for.

    Raises:
      UsageError: if the record names code that is not among them; the message says what to add.
    """
    log = RunFolder.open(folder)
    refuse_links_out(log.folder)
    record: dict[str, Any] = log.read_config()
    recipe, words = record.get("recipe"), record.get("arguments")
    if not isinstance(recipe, str) or not isinstance(words, list):
        raise UsageError(f"{folder}/config.json does not say which recipe it came from")
    arguments = [str(word) for word in cast("list[object]", words)]
    if unknown := [word for word in code_in(recipe, arguments) if word not in allowed]:
        raise UsageError(
            f"{folder} was trained with code that would be run now: "
            f"{', '.join(map(printable, unknown))}; if you trust it, put --allow "
            f"{shlex.join(map(printable, code_in(recipe, arguments)))} behind the command"
        )
    print(f"as recorded: {printable(shlex.join([recipe, *arguments]))}", file=sys.stderr)
    return recipe, arguments


def code_in(recipe: str, arguments: Sequence[str]) -> list[str]:
    """The words of a command line that name code other than that of spanwise, each once.

    Example:
      >>> code_in("guess.py:guessing", ["--steps", "3", "--advantage=mine.py:Mine"])
      ['guess.py:guessing', 'mine.py:Mine']
      >>> code_in("grpo_chain", ["--sampler.urls", "http://127.0.0.1:8000"])
      []
    """
    named = [] if recipe in recipes.SHIPPED else [recipe]
    for word in arguments:
        value = word.partition("=")[2] if word.startswith("--") else word
        if _CODE.fullmatch(value):
            named.append(value)
    return list(dict.fromkeys(named))


def split_allowed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words behind ``--allow``, and the other arguments.

    Example:
      >>> split_allowed(["--seed", "1", "--allow", "my.py:a", "my.py:B"])
      (['my.py:a', 'my.py:B'], ['--seed', '1'])
    """
    allowed: list[str] = []
    rest: list[str] = []
    into = rest
    for word in arguments:
        if word == "--allow":
            into = allowed
        else:
            into = rest if word.startswith("--") else into
            into.append(word)
    return allowed, rest


def resume_command(folder: Path, recipe: str, arguments: Sequence[str]) -> str:
    """What to type to go on with a run."""
    code = code_in(recipe, arguments)
    words = ["--resume", str(folder), *(["--allow", *code] if code else [])]
    return f"spanwise train {shlex.join(map(printable, words))}"
