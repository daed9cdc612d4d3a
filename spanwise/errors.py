"""What spanwise says when it cannot go on."""

from __future__ import annotations


class SpanwiseError(ValueError):
    """Something that the user can put right; the message is one line that says what and how.

    The command line shows these as one line. Any other exception is a bug, of spanwise or of
    the user's own code, and keeps its traceback.
    """


def one_line(error: BaseException | str, limit: int = 500) -> str:
    """An exception's type and message, or a text, on one line of at most ``limit`` characters.

    Example:
      >>> one_line(ValueError("no   such key"))
      'ValueError: no such key'
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:limit]
