"""What spanwise says when it cannot go on."""

from __future__ import annotations


class SpanwiseError(ValueError):
    """Something that the user can put right; the message is one line that says what and how.

    The command line shows these as one line. Any other exception is a bug, of spanwise or of
    the user's own code, and keeps its traceback.
    """
