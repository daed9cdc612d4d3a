r"""Final answers: found in a text, and compared as mathematics by ``math-verify``.

References:
  `Math-Verify <https://github.com/huggingface/Math-Verify>`_, Hugging Face.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from spanwise.errors import SpanwiseError

_BOX = re.compile(r"\\boxed\s*{")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

SENTENCE_WORDS = 4
"""Bare words from which on an answer is no mathematics."""

INSTALL_HINT = "pip install 'spanwise[reasoning]'"


def last_boxed_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` of a text, or None.

    A last box that is empty or never closed counts as none: an earlier one was not meant
    to be the answer.

    Example:
      >>> last_boxed_answer(r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
      '\\frac{1}{2}'
      >>> last_boxed_answer(r"\boxed{1}, no: \boxed{\frac{1}{2}") is None
      True
    """
    boxes = list(_BOX.finditer(text))
    depth = 1
    for brace in _BRACE.finditer(text, boxes[-1].end()) if boxes else ():
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth == 0:
            return text[boxes[-1].end() : brace.start()].strip() or None
    return None


def tagged_answer(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>`` of a text, or None.

    Example:
      >>> tagged_answer("<answer> 1 </answer> no: <answer> 2 </answer>")
      '2'
    """
    answers = _TAGGED.findall(text)
    return (answers[-1].strip() or None) if answers else None


def reference_answer(text: str) -> str:
    r"""The bare answer of a reference, which may be a worked solution.

    A solution ends in ``\boxed{...}`` (MATH) or in ``#### ...`` (GSM8K); anything else is
    taken as it is.

    Example:
      >>> reference_answer("48 / 2 = 24, 48 + 24 = 72\n#### 72")
      '72'
    """
    return last_boxed_answer(text) or text.rpartition("####")[2].strip()


def may_be_right(reference: str) -> bool:
    r"""Whether ``math_verdict`` can find any answer equal to a reference, by a glance at it.

    Example:
      >>> [may_be_right(text) for text in (r"\frac{1}{2}", "∅", r"\{\}", "?!", "", "}{")]
      [True, True, True, False, False, False]
    """
    depth = 0
    for brace in _BRACE.finditer(reference):
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth < 0:
            return False
    return depth == 0 and re.search(r"[^\s!-/:-@\[-`{-~]|\\{", reference) is not None


def is_sentence(reference: str) -> bool:
    r"""Whether a reference is four words or more: letters to ``math_verdict``, in any order.

    Example:
      >>> is_sentence("there are infinitely many"), is_sentence(r"5 \text{ square centimetres}")
      (True, False)
    """
    words = re.findall(r"(?<![\\\w])[^\W\d_]{2,}", reference)
    return len(words) >= SENTENCE_WORDS


def math_verdict(answer: str, references: Sequence[str]) -> bool | None:
    r"""Whether an answer in LaTeX equals any reference; None if it is not mathematics.

    Runs ``math-verify`` without its own time limits, which need the main thread. It can
    compute for ever: call it in a process that has a deadline, ``scoring_process.scored``.

    Raises:
      ValueError: if a reference cannot be read.
      Exception: whatever ``math-verify`` raises while it compares.

    Example:
      >>> math_verdict("0.5", [r"\frac{1}{2}"]), math_verdict("2", [r"\frac{1}{2}"])
      (True, False)
      >>> math_verdict("@@", ["2"]) is None
      True
    """
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # warns of the missing limits
    read = _parsed(answer)
    for reference in references:
        wanted = _parsed(reference)
        if not wanted:
            raise SpanwiseError(f"the reference answer {reference[:80]!r} cannot be read")
        if math_verify.verify(wanted, read, timeout_seconds=None, raise_on_error=True):
            return True
    return None if all(isinstance(part, str) for part in read) else False


def _parsed(latex: str) -> list[Any]:
    """What ``math-verify`` reads in it: an expression and its text, the text alone, or nothing."""
    import math_verify

    text = latex.strip().removesuffix(".")
    # LaTeX alone: its other reader evaluates Python expressions.
    only = [math_verify.LatexExtractionConfig()]
    return math_verify.parse(f"\\boxed{{{text}}}", only, parsing_timeout=0, raise_on_error=True)


def math_verify_is_installed() -> bool:
    """Whether ``math_verdict`` can work; a look that does not load it."""
    return find_spec("math_verify") is not None
