"""Worked examples of the search task, with faults, to fit a base model on.

The names are drawn anew for every demonstration and have nothing to do with any world: a
model can learn from them how to search, and no fact. Stopping early on long questions is a
habit; all other faults are slips.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from spanwise.envs.search.names import FIRST_NAMES, SURNAMES
from spanwise.envs.search.world import (
    RELATIONS,
    WORDINGS,
    Fact,
    new_name,
    question_text,
    search_query,
)
from spanwise.envs.search.xml_turns import TAGS, result_text
from spanwise.errors import SpanwiseError
from spanwise.toys.demonstration import Demonstration, DemonstrationSource

FIXED_WORDS = "who is 's ? of next found : nothing . \\boxed{ }"


@dataclass(frozen=True, kw_only=True)
class Demonstrations(DemonstrationSource):
    r"""How questions are worked, and how often each fault is made.

    Every probability is for one decision: ``p`` of a question with ``h`` hops is used up
    to ``h`` times. After a fault the work goes on as if nothing were wrong.

    Raises:
      ValueError: if a probability is not between 0 and 1, or the hops are not 1 to 10.

    Example:
      >>> right = Demonstrations(min_hops=1, max_hops=1).right()
      >>> demonstration = right.draw(random.Random(0))
      >>> demonstration.question
      "who is Amos Glover 's neighbour ?"
      >>> demonstration.turns[1][0]
      '<think> found </think> <answer> \\boxed{ Louis Norton } </answer>'
    """

    FAULTS: ClassVar[tuple[str, ...]] = (
        "wrong_relation", "skipped_hop", "wrong_entity", "early_answer", "habit", "broken_format"
    )  # fmt: skip

    min_hops: int = 1
    """Number of facts to look up for the easiest questions."""

    max_hops: int = 4
    """Number of facts to look up for the hardest questions."""

    wordings: int = 2
    """Number of wordings of a fact that the documents use."""

    wrong_relation: float = 0.1
    """Probability of searching another relation than the next one."""

    skipped_hop: float = 0.06
    """Probability of searching the relation after the next one, and going on behind it."""

    wrong_entity: float = 0.03
    """Probability of copying the name searched before, not the one found."""

    early_answer: float = 0.06
    """Probability of answering with a person on the way, where ``habit`` does not apply."""

    habit: float = 0.56
    """Probability of that once ``habit_after`` facts are found."""

    habit_after: int = 2
    """Number of facts after which the habit applies, and ``early_answer`` no longer."""

    broken_format: float = 0.01
    """Probability of leaving a thought out or unclosed; the tool does not answer."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_hops <= self.max_hops <= len(RELATIONS):
            raise SpanwiseError(
                f"hops must satisfy 1 <= min <= max <= {len(RELATIONS)}, "
                f"got {self.min_hops} to {self.max_hops}"
            )
        if not 1 <= self.wordings <= len(WORDINGS):
            raise SpanwiseError(f"wordings must be 1 to {len(WORDINGS)}, got {self.wordings}")
        super().__post_init__()

    def draw(self, rng: random.Random) -> Demonstration:
        return _Worker(self, rng).work()

    def words(self) -> list[str]:
        wordings = [w for w in " ".join(WORDINGS).split() if not w.startswith("{")]
        words = (*TAGS, *FIXED_WORDS.split(), *RELATIONS, *wordings, *FIRST_NAMES, *SURNAMES)
        return list(dict.fromkeys(words))


class _Worker:
    """Works one question in a world of its own that is made up as it goes."""

    def __init__(self, odds: Demonstrations, rng: random.Random) -> None:
        self.odds, self.rng = odds, rng
        self.facts: dict[tuple[str, str], Fact] = {}
        self.names: set[str] = set()
        self.faults: list[str] = []

    def name(self) -> str:
        return new_name(self.rng, self.names)

    def fact(self, relation: str, subject: str) -> Fact:
        if (relation, subject) not in self.facts:
            self.facts[relation, subject] = Fact(
                subject=subject,
                relation=relation,
                value=self.name(),
                wording=self.rng.randrange(self.odds.wordings),
            )
        return self.facts[relation, subject]

    def slips(self, fault: str) -> bool:
        return self.odds.slips(fault, self.rng, self.faults)

    def stops_early(self, hop: int) -> bool:
        fault = "habit" if hop >= self.odds.habit_after else "early_answer"
        return hop > 0 and self.slips(fault)

    def work(self) -> Demonstration:
        odds, rng = self.odds, self.rng
        relations = tuple(rng.sample(RELATIONS, rng.randint(odds.min_hops, odds.max_hops)))
        subject = answer = self.name()
        for relation in relations:
            answer = self.fact(relation, answer).value
        return Demonstration(
            question=question_text(subject, relations),
            turns=tuple(self.turns(subject, relations)),
            answer=answer,
            faults=tuple(self.faults),
        )

    def turns(self, subject: str, relations: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        person, before, hop = subject, subject, 0
        while hop < len(relations) and not self.stops_early(hop):
            if hop + 1 < len(relations) and self.slips("skipped_hop"):
                hop += 1
            relation = relations[hop]
            if self.slips("wrong_relation"):
                relation = self.rng.choice([r for r in RELATIONS if r != relation])
            if hop > 0 and self.slips("wrong_entity"):
                person = before
            search = f"<search> {search_query(relation, person)} </search>"
            if self.slips("broken_format"):
                thought = f"<think> next {relation} " if self.rng.random() < 0.5 else ""
                yield thought + search, ""
                return
            fact = self.fact(relation, person)
            yield f"<think> next {relation} </think> {search}", result_text([fact.document])
            person, before = fact.value, person
            hop += 1
        yield f"<think> found </think> <answer> \\boxed{{ {person} }} </answer>", ""
