"""A made-up world of people and facts, and the documents that tell them.

Nothing in it can be known in advance: the names are drawn from a seed, so that a
question about it is answered by searching or not at all. Everyone has one value for
every relation, and facts never leave the split a person belongs to: questions of
different splits share no person anywhere on their answer paths.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from spanwise.envs.base import Split, Task
from spanwise.envs.search.names import FIRST_NAMES, SURNAMES
from spanwise.errors import SpanwiseError
from spanwise.tools.search import Document

RELATIONS: tuple[str, ...] = (
    "mother", "father", "employer", "teacher", "doctor",
    "lawyer", "neighbour", "mentor", "rival", "landlord",
)  # fmt: skip

WORDINGS: tuple[str, ...] = (
    "the {relation} of {subject} is {value} .",
    "for {subject} , the {relation} is {value} .",
    "{value} is the {relation} of {subject} .",
    "as {relation} , {subject} has {value} .",
    "records name {value} as {relation} of {subject} .",
    "{subject} names {value} as {relation} .",
)
"""Ways to tell a fact. Each holds the subject's name, as encyclopedia sentences do."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """``value`` is the ``relation`` of ``subject``."""

    subject: str
    relation: str
    value: str
    wording: int
    """Index into ``WORDINGS``."""

    @property
    def document(self) -> Document:
        """The one document that tells this fact; its title is the subject."""
        text = WORDINGS[self.wording].format(
            subject=self.subject, relation=self.relation, value=self.value
        )
        return Document(title=self.subject, text=text)


def question_text(subject: str, relations: tuple[str, ...]) -> str:
    """Ask for the end of a chain of relations, in the order they are followed.

    Example:
      >>> question_text("Alan Grove", ("employer", "mother"))
      "who is Alan Grove 's employer 's mother ?"
    """
    return "who is " + " 's ".join((subject, *relations)) + " ?"


def new_name(rng: random.Random, taken: set[str], surname: str = "") -> str:
    """Draw a name that is not ``taken``, and take it."""
    while True:
        name = f"{rng.choice(FIRST_NAMES)} {surname or rng.choice(SURNAMES)}"
        if name not in taken:
            taken.add(name)
            return name


def search_query(relation: str, subject: str) -> str:
    """The query that finds a fact.

    Example:
      >>> search_query("mother", "Alan Grove")
      'mother of Alan Grove'
    """
    return f"{relation} of {subject}"


@dataclass(frozen=True, kw_only=True)
class SearchWorld:
    """People, facts, documents and questions, all drawn from one seed.

    Args:
      seed: Seed of names, facts and questions.
      train_people: People that training questions run over.
      dev_people: The same for development questions.
      test_people: The same for test questions.
      lookalikes: For each person, this many others with the same surname and facts of
        their own, whom no question needs.
      wordings: How many of ``WORDINGS`` the documents use.

    Raises:
      ValueError: if the stock has too few names, or there is no such number of wordings.

    Example:
      >>> world = SearchWorld(train_people=20, dev_people=20, test_people=20)
      >>> len(world.facts)  # 60 people, 10 relations
      600
    """

    seed: int = 0
    train_people: int = 900
    dev_people: int = 200
    test_people: int = 400
    lookalikes: int = 0
    wordings: int = 2

    def __post_init__(self) -> None:
        groups = (self.train_people, self.dev_people, self.test_people)
        if min(groups) < 20:
            raise SpanwiseError(f"a split needs at least 20 people, got {groups}")
        if not 1 <= self.wordings <= len(WORDINGS):
            raise SpanwiseError(f"wordings must be 1 to {len(WORDINGS)}, got {self.wordings}")
        wanted, stock = sum(groups) * (1 + self.lookalikes), len(FIRST_NAMES) * len(SURNAMES)
        if self.lookalikes < 0 or wanted > stock // 4:
            raise SpanwiseError(
                f"{wanted} people with look-alikes are more than {stock // 4}, a quarter of "
                "the names in stock; ask for fewer people or look-alikes"
            )

    @cached_property
    def people(self) -> dict[str, tuple[str, ...]]:
        """Names by split, and under ``lookalike`` those that no question needs."""
        rng = random.Random(f"people {self.seed}")
        taken: set[str] = set()

        sizes = {"train": self.train_people, "dev": self.dev_people, "test": self.test_people}
        groups = {
            split: tuple(new_name(rng, taken) for _ in range(size)) for split, size in sizes.items()
        }
        groups["lookalike"] = tuple(
            new_name(rng, taken, person.split()[1])
            for group in list(groups.values())
            for person in group
            for _ in range(self.lookalikes)
        )
        return groups

    @cached_property
    def facts(self) -> dict[tuple[str, str], Fact]:
        """Every fact by ``(relation, subject)``."""
        rng = random.Random(f"facts {self.seed}")
        facts: dict[tuple[str, str], Fact] = {}
        for group in self.people.values():
            for subject in group:
                for relation in RELATIONS:
                    value = subject
                    while value == subject:
                        value = rng.choice(group)
                    facts[relation, subject] = Fact(
                        subject=subject,
                        relation=relation,
                        value=value,
                        wording=rng.randrange(self.wordings),
                    )
        return facts

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """One for each fact, in the order of ``facts``."""
        return tuple(fact.document for fact in self.facts.values())

    def answer_path(self, subject: str, relations: tuple[str, ...]) -> tuple[str, ...]:
        """The people met when the relations are followed, the subject first."""
        path = [subject]
        for relation in relations:
            path.append(self.facts[relation, path[-1]].value)
        return tuple(path)

    def questions(self, split: Split, count: int, min_hops: int, max_hops: int) -> tuple[Task, ...]:
        """Draw questions with equally many of each number of hops.

        No question stands twice, follows a relation twice or meets a person twice.

        Returns:
          Tasks whose ``info`` holds ``hops``, ``subject``, ``relations`` (in the order
          they are followed) and ``path`` (the people met, subject first).
        """
        rng = random.Random(f"questions {self.seed} {split}")
        tasks: list[Task] = []
        asked: set[str] = set()
        refused = 0
        while len(tasks) < count:
            hops = min_hops + len(tasks) % (max_hops - min_hops + 1)
            subject = rng.choice(self.people[split])
            relations = tuple(rng.sample(RELATIONS, hops))
            path = self.answer_path(subject, relations)
            question = question_text(subject, relations)
            if question in asked or len(set(path)) < len(path):
                refused += 1
                if refused > 10 * count + 1000:
                    raise SpanwiseError(
                        f"found only {len(tasks)} of {count} different {split} questions with "
                        f"{min_hops} to {max_hops} hops; ask for fewer, or for more people"
                    )
                continue
            asked.add(question)
            info = {"hops": hops, "subject": subject, "relations": relations, "path": path}
            task_id = f"{split}-{len(tasks):05d}"
            tasks.append(Task(id=task_id, question=question, answers=(path[-1],), info=info))
        return tuple(tasks)
