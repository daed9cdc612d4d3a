"""Names on the command line: of a part that ships, or of one of the user's own.

A part of one's own is named ``FILE.py:NAME``, or ``package.module:NAME`` where it is
installed or below the working folder. Nothing has to be registered.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from spanwise import errors
from spanwise.errors import SpanwiseError
from spanwise.lookup.files import find_beside, module_name


class UnknownName(SpanwiseError):
    """There is nothing of that name."""


def load(spec: str, shipped: Mapping[str, Any], what: str) -> Any:
    """The object that ``spec`` names.

    Args:
      spec: A key of ``shipped``, ``FILE.py:NAME`` or ``package.module:NAME``.
      shipped: What has a name of its own: itself, or ``module:NAME``, imported when asked for.
      what: What is looked for, for messages.

    Raises:
      UnknownName: if there is nothing of that name; the message says what is near. What goes
        wrong inside the user's own code is raised as it is.

    Example:
      >>> load("grpo", {"grpo": "spanwise.recipes.search:grpo_search"}, "recipe").__name__
      'grpo_search'
    """
    if spec in shipped:
        found = shipped[spec]
        if not isinstance(found, str):
            return found
        source, _, name = found.partition(":")
        return getattr(importlib.import_module(source), name)
    source, colon, name = spec.rpartition(":")
    if spec.endswith(".py"):
        raise UnknownName(f"name what of {spec} is meant: {spec}:NAME")
    if not colon:
        listed = f"there are {', '.join(sorted(shipped))}, or one" if shipped else "give one"
        raise UnknownName(
            f"no {what} {spec!r}{_meant(spec, shipped) or ';'} {listed} of your own, FILE.py:NAME"
        )
    module = _file(Path(source), what) if source.endswith(".py") else _module(source, what)
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if _is_of(value, module)]
        listed = ", ".join(own) or "no function or class"
        raise UnknownName(f"{source} has no {name!r}{_meant(name, own) or ';'} it has {listed}")
    return getattr(module, name)


def _file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        folder = path.parent.resolve()
        near = _meant(path.name, [file.name for file in folder.glob("*.py")])
        raise UnknownName(f"no {what} file {path.name} in {folder}{near}")
    return _imported(module_name(path))


def _module(name: str, what: str) -> ModuleType:
    find_beside(Path.cwd())
    module = _imported(name, f"no {what} module {name}, neither installed nor below this folder")
    root = sys.modules[name.partition(".")[0]]
    errors.user_packages.update(getattr(root, "__path__", None) or [str(root.__file__)])
    return module


def _imported(name: str, missing: str = "") -> ModuleType:
    """The module; one line if it, or one that the user's own code asks for, is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        wanted = str(error.name)
        if f"{name}.".startswith(f"{wanted}."):
            raise UnknownName(missing) from None
        frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
        files = [f.f_code.co_filename for f in frames if not f.f_code.co_filename.startswith("<")]
        if not errors.is_users(files[-1]):
            raise
        near = _meant(wanted, [file.stem for file in Path(files[-1]).parent.glob("*.py")])
        raise UnknownName(
            f"{errors.place(error)} imports {wanted}, neither installed nor beside the file{near}"
        ) from None


def _is_of(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _meant(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
