"""Errors that the user can put right, and the place in the user's code that led to one."""

from __future__ import annotations

import sysconfig
import traceback
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PACKAGE = str(Path(__file__).parent)
"""The folder of spanwise itself."""

_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = {"site-packages", "dist-packages"}

user_packages: set[str] = set()
"""Folders of installed packages that hold the user's own code, such as that of a recipe."""


class SpanwiseError(ValueError):
    """Something that the user can put right; the message is one line that says what and how.

    The command line shows these as one line. Any other exception is a bug, of spanwise or of
    the user's own code, and keeps its traceback.
    """


def visible(text: str) -> str:
    r"""Text without what does something in a terminal instead of showing something.

    Line breaks and tabs stay.

    Example:
      >>> visible("a\x1b[31mred\n\u202eb")
      'a[31mred\nb'
    """
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")


def printable(text: object) -> str:
    r"""As ``visible``, on one line.

    Example:
      >>> printable("a\x1b[31mred\n\u202eb")
      'a[31mred b'
    """
    return visible(" ".join(str(text).split()))


def one_line(error: BaseException | str, limit: int = 500) -> str:
    """A text, or what was raised, on one line of about ``limit`` characters.

    Of an exception it says where in the user's code it comes from, if it does:
    ``KeyError: 'x' (my_env.py:41 in reply)``.

    Example:
      >>> one_line(ValueError("no   such key"))
      'ValueError: no such key'
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())[:limit]
    return f"{text} ({where})" if not isinstance(error, str) and (where := place(error)) else text


def first_line(error: BaseException) -> str:
    r"""The first line of what an error says, or the name of its class if it says nothing.

    Example:
      >>> first_line(OSError("no such file\nand more")), first_line(KeyError())
      ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def place(error: BaseException) -> str:
    """The innermost line of the user's that led to an error, such as ``my_env.py:41 in reply``.

    Returns:
      The place of the first of the exceptions that the error was raised ``from``; empty if
      none of them passed through code of the user's.
    """
    found = ""
    for link in _chain(error):
        for frame, line in traceback.walk_tb(link.__traceback__):
            code = frame.f_code
            if is_users(code.co_filename):
                found = f"{Path(code.co_filename).name}:{line} in {code.co_name}"
    return found


def user_traceback(error: BaseException) -> str:
    """The traceback of what the error was raised ``from``, if that came from the user's code.

    It begins at the first of the user's lines. Empty if the error came from elsewhere.
    """
    _, *causes = _chain(error)
    for cause in reversed(causes):
        if (tb := _from_user(cause.__traceback__)) is not None:
            return "".join(traceback.format_exception(type(cause), cause, tb))
    return ""


def is_users(file: str) -> bool:
    """True for code of the user's: not spanwise's, the standard library's or a package's.

    Example:
      >>> is_users("/home/me/my_env.py"), is_users(__file__), is_users("<frozen runpy>")
      (True, False, False)
    """
    path = Path(file)
    if file.startswith("<") or path.is_relative_to(PACKAGE):
        return False
    if any(path.is_relative_to(folder) for folder in user_packages):
        return True
    return not path.is_relative_to(_STDLIB) and not _INSTALLED.intersection(path.parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, what that was raised from, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.exceptions[0] if isinstance(link, BaseExceptionGroup) else link.__cause__


def _from_user(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and not is_users(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return tb
