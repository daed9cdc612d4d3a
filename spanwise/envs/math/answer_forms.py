r"""Forms in which a prompt may ask for the final answer, and the answer in one of them.

Data sets say for themselves how to answer: DAPO-Math-17k asks for a last line ``Answer: ...``,
others for ``\boxed{...}``, for ``#### ...`` or for ``<answer>...</answer>``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spanwise.envs.math.scoring import last_boxed_answer, tagged_answer

MAX_END = 200
"""Characters of a line in which its end markers are looked for."""

_LEAD = r"\b(?:form|format|after|with|within|in|by|as|write|line|like|using|between|inside)\b"
_END_MARKERS = re.compile(r"(?:<[^<>\s]+>|\[/?[A-Z_]+\])+\s*$")


@dataclass(frozen=True)
class AnswerForm:
    """One way to state an answer."""

    asked: re.Pattern[str]
    """Found in a prompt that asks for it."""

    stated: re.Pattern[str]
    """The beginning of an answer in it."""

    def read(self, text: str) -> tuple[int, str] | None:
        """Where the last answer of this form begins, and what it is; None if there is none."""
        starts = [match.start() for match in self.stated.finditer(text)]
        if not starts:
            return None
        answer = _content(text[starts[-1] :])
        return None if answer is None else (starts[-1], answer)


BOX = AnswerForm(
    re.compile(
        r"\b(?:answer|result|solution)\b.{0,80}?\\boxed|\\boxed.{0,60}\banswer\b", re.I | re.S
    ),
    re.compile(r"\\boxed\s*{"),
)
FORMS = (
    BOX,
    AnswerForm(
        re.compile(_LEAD + r"\W*(?:your |the )?(?:final )?answer\s*:", re.I),
        re.compile(r"\banswer\s*:", re.I),
    ),
    AnswerForm(re.compile(_LEAD + r"[^\w#]*####", re.I), re.compile("####")),
    AnswerForm(re.compile(r"<answer>.{0,80}</answer>", re.S), re.compile("<answer>")),
)


def asked_forms(prompt: str) -> tuple[AnswerForm, ...]:
    r"""The forms that a prompt asks for.

    Example:
      >>> [BOX] == list(asked_forms(r"Put the final answer in \boxed{}."))
      True
      >>> asked_forms(r"What is in the box: 3 + \boxed{?} = 7") == asked_forms("Answer: ") == ()
      True
    """
    return tuple(form for form in FORMS if form.asked.search(prompt))


def stated_answer(text: str, forms: Sequence[AnswerForm]) -> str | None:
    r"""The last answer of a text in one of the forms, or in a box; None if there is none.

    Example:
      >>> line = asked_forms("End with a line of the form Answer: $Answer")
      >>> stated_answer("It is 17 + 17.\n\n**Answer:** $34$.", line)
      '$34$.'
      >>> stated_answer("Answer: 34", [BOX]) is None
      True
    """
    found = [answer for form in {*forms, BOX} if (answer := form.read(text))]
    return max(found)[1] if found else None


def _content(stated: str) -> str | None:
    """What follows the beginning of an answer: a box, a tag, or else the rest of the line."""
    if stated.startswith("\\boxed"):
        return last_boxed_answer(stated)
    if stated.startswith("<answer>"):
        inner = tagged_answer(stated)
        return inner and (last_boxed_answer(inner) or inner)
    said = re.sub(r"\A(?:####|answer\s*:)", "", stated, flags=re.I)
    line = said.strip(" \t\r\n*_").partition("\n")[0]
    # an end is short: a search through a long line of markers takes quadratic time
    line = (line[:-MAX_END] + _END_MARKERS.sub("", line[-MAX_END:])).strip(" \t\r*_")
    return last_boxed_answer(line) or line or None
