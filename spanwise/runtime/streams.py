r"""What a program says, where it can be heard: no output ends a program or fails for a letter.

A reader that goes away (``| head``) and a disk that is full would end a run of days at its
next line. A terminal of ASCII would end it at its first arrow.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO

PLAIN = {
    **{"→": ">", "←": "<", "–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "…": "...", "²": "2"},
    **{"≤": "<=", "≥": ">=", "•": "*", "“": '"', "”": '"', "’": "'", "█": "#"},
    **dict.fromkeys("─━═╌╴╶╸╺", "-"), **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛┡┩┢┪╇╈╔╗╚╝", "+"),
}  # fmt: skip
"""What stands for a letter in an encoding that does not have it; others are written as escapes."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A codec's answer to letters that an encoding does not have."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    plain = "".join(PLAIN.get(c) or ascii(c)[1:-1] for c in letters)
    return plain, error.end


codecs.register_error("spanwise.plain", _plain)


class LastingStream:
    """A stream of text that can always be written to: what nobody can read is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        shown = text.encode(encoding, "spanwise.plain").decode(encoding)
        try:
            self._stream.write(shown)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Have the rest, and what is held back already, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # it may have no descriptor
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if error.errno not in (errno.EPIPE, errno.EBADF):
            reason = error.strerror or error
            print(f"spanwise: nothing more is printed to stdout: {reason}", file=sys.stderr)


@contextlib.contextmanager
def lasting_streams() -> Generator[None]:
    """While the context is open, stdout and stderr are such streams."""
    before = sys.stdout, sys.stderr
    lasting = [stream and LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = lasting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream in filter(None, lasting):
            stream.flush()
        sys.stdout, sys.stderr = before
