"""Exact match and F1 after SQuAD's normalisation, F1 with HotpotQA's rule for yes and no.

References:
  Rajpurkar et al., `SQuAD <https://arxiv.org/abs/1606.05250>`_, 2016, section 6.1.
  Yang et al., `HotpotQA <https://arxiv.org/abs/1809.09600>`_, 2018; its evaluation script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

CLOSED_ANSWERS = ("yes", "no", "noanswer")
"""Answers that are right or wrong as a whole: "no way home" shares nothing with "no"."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and spare spaces.

    Example:
      >>> normalised_answer("  The Mother, of  Alan-Grove! ")
      'mother of alangrove'
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised answers, else 0.0.

    Example:
      >>> exact_match("the beatles", ["The Beatles!", "Fab Four"])
      1.0
    """
    return float(normalised_answer(prediction) in {normalised_answer(a) for a in answers})


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The best harmonic mean of word precision and word recall against any answer.

    As HotpotQA and 2WikiMultiHopQA count it: yes, no and noanswer share words with nothing but
    themselves.

    Example:
      >>> round(f1("Alan Grove of York", ["Alan Grove"]), 4)  # P 2/4, R 2/2
      0.6667
      >>> f1("no way home", ["no"]), f1("No.", ["no"])
      (0.0, 1.0)
    """
    return max((_word_f1(prediction, answer) for answer in answers), default=0.0)


def _word_f1(prediction: str, answer: str) -> float:
    bare = normalised_answer(prediction), normalised_answer(answer)
    if bare[0] != bare[1] and not set(bare).isdisjoint(CLOSED_ANSWERS):
        return 0.0
    predicted, wanted = (text.split() for text in bare)
    if not predicted or not wanted:  # as SQuAD 2.0: nothing matches nothing only
        return float(predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 2.0 * shared / (len(predicted) + len(wanted))
