"""Reinforcement learning for language models, credited and updated one span at a time.

spanwise train RECIPE [--option value ...]     train, and show what was learned
spanwise train --resume RUN                    go on with a run that was stopped or killed
spanwise eval RUN_OR_MODEL [--option value]    answer held-out questions
spanwise show RUN [--step N] [--tree N]        one search tree with its credit
spanwise view RUN [RUN ...]                    see runs, trees and tokens in the browser
spanwise compare RUN RUN [RUN ...]             scores of runs over their seeds
spanwise study correlation RUN [--option …]    which advantages agree with Monte Carlo values
spanwise build-base MODEL [--option value ...] fit a small model from nothing

RECIPE is the name of a recipe or a function of your own, FILE.py:FUNCTION or
package.module:FUNCTION; spanwise train lists the recipes. A part of a recipe is exchanged for
another by name, such as --sampler vllm, or for a class of your own, --advantage FILE.py:CLASS.
Put --help behind any of these to see its options.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from spanwise.cli.base_models import build_base_command
from spanwise.cli.reading import compare_command, show_command, study_command, view_command
from spanwise.cli.training import eval_command, train_command
from spanwise.cli.words import UsageError, asks_for_help
from spanwise.errors import PACKAGE, SpanwiseError, place, printable, user_traceback, visible
from spanwise.runtime.streams import lasting_streams

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train_command,
    "eval": eval_command,
    "show": show_command,
    "view": view_command,
    "compare": compare_command,
    "study": study_command,
    "build-base": build_base_command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, whether or not anybody reads what it prints.

    What spanwise refuses is one line and exit status 2, behind the traceback of the user's own
    code where that was the cause. Every other exception is a bug and is not caught.
    """
    warnings.formatwarning = _warning_line
    with lasting_streams():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    if not arguments or asks_for_help(arguments):
        print(__doc__)
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise UsageError(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
        COMMANDS[arguments[0]](arguments[1:])
    except SpanwiseError as error:
        print(_refusal(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spanwise: interrupted", file=sys.stderr)
        return 130
    return 0


def _refusal(error: SpanwiseError) -> str:
    told = printable(error)
    if cause := user_traceback(error):
        return f"{visible(cause)}\n{_speaker()}: {told}"
    where = place(error)
    return f"{_speaker()}: {told} ({where})" if where else f"{_speaker()}: {told}"


_usual_warning = warnings.formatwarning


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of spanwise's own as one line without the place in its code."""
    if Path(filename).is_relative_to(PACKAGE):
        return f"{_speaker()}: warning: {printable(message)}\n"
    return _usual_warning(message, category, filename, lineno, line)


def _speaker() -> str:
    """Who reports something: of several processes, which."""
    return f"spanwise, process {os.environ['RANK']}" if "RANK" in os.environ else "spanwise"
