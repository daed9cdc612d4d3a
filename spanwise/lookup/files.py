"""A user's file as a module that takes the place of no other, whatever the file is called.

``/home/me/random.py`` becomes ``spanwise.lookup._2f_home_2f_me_2f_random_2e_py``: the name says
where the file is. A process that is sent an object of such a module imports ``spanwise.lookup``
on the way to it, and so finds the file. The same file is the same module, however it is named.

The file's folder goes to the *end* of ``sys.path``, so that it finds what lies beside it and
nothing that lies there takes the place of what is installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PREFIX = f"{__package__}."


def module_name(file: Path) -> str:
    """The name that a user's file is imported by.

    Example:
      >>> module_name(Path("/a/b_1.py"))
      'spanwise.lookup._2f_a_2f_b_5f_1_2e_py'
    """
    quoted = re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}_", str(file.resolve()))
    return PREFIX + quoted


def find_beside(folder: Path) -> None:
    """Have modules of a folder found, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


class _UserFiles(MetaPathFinder):
    """Finds modules that ``module_name`` named."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        quoted = fullname.removeprefix(PREFIX)
        if quoted == fullname or not quoted.startswith("_"):
            return None
        file = Path(re.sub(r"_([0-9a-f]+)_", lambda found: chr(int(found[1], 16)), quoted))
        find_beside(file.parent)
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_UserFiles())
