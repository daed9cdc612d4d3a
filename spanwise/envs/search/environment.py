"""Questions that are answered by searching, one tool call a turn.

``SearchEnvironment`` is what all of them share: the grammar, the search budget, the
reward. ``MultiHopSearch`` asks about a made-up world and needs nothing from outside.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

from spanwise.envs.base import Environment, Reply, Split, Task, Turn
from spanwise.envs.search.exact_match import exact_match, f1
from spanwise.envs.search.turn_formats import XML_TURNS, TurnFormat
from spanwise.envs.search.world import RELATIONS, SearchWorld
from spanwise.envs.search.xml_turns import Answer, Call, result_text
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.tools.base import Tool, ToolError
from spanwise.tools.search import Document, DocumentIndex, SearchTool
from spanwise.tree import Failure, Stop

BROKEN_FORMAT_REWARD = -1.0


@dataclass(frozen=True, kw_only=True)
class SearchEnvironment(Environment):
    """Answer a question with the help of a search tool.

    A turn is read by ``turn_format``. The reward, paid at the end:

        1    the answer matches exactly, after SQuAD's normalisation
        0    it does not
       -1    the format is broken: a malformed turn, one cut by the token limit, or a
             call when no call is left

    A tool that fails or misses its deadline is a failure, and no reward.
    The trajectory is a success if the answer matches. ``outcome`` of a turn holds ``query``
    and ``documents`` (titles), or ``answer`` and ``f1``; of a turn with broken format
    ``fault``, and 0 for ``f1``.
    """

    _opens_thought: ClassVar[bool] = False
    """Whether the prompt ends in ``<think>``, so that the first turn begins within the thought."""

    max_calls: int = 6
    """Largest number of tool calls in a trajectory."""

    instructions: str = ""
    """Text put before the question."""

    def __post_init__(self) -> None:
        if self.max_calls < 0:
            raise SpanwiseError(f"max_calls must be 0 or more, got {self.max_calls}")

    @property
    def turn_format(self) -> TurnFormat:
        """How turns are written."""
        return XML_TURNS

    @property
    def stop_strings(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The turn format's."""
        return self.turn_format.stop_strings

    @property
    def own_tags(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The turn format's tags; ``asked`` and ``result`` leave none in text from elsewhere."""
        return self.turn_format.tags

    def asked(self, task: Task) -> str:
        """The question, with a ``‹`` for the ``<`` of a tag of the turn format."""
        text = task.question
        for tag in self.turn_format.tags:
            text = text.replace(tag, tag.replace("<", "‹"))
        return text

    @property
    @abstractmethod
    def search_tool(self) -> Tool:
        """Answers a query with a sequence of ``Document``."""

    def messages(self, task: Task) -> list[dict[str, str]]:
        """One user message: the instructions, if any, and the question."""
        opening = f"{self.instructions}\n\n" if self.instructions else ""
        return [{"role": "user", "content": opening + self.asked(task)}]

    def prompt(self, task: Task, tokenizer: Any) -> str:
        """The chat through the template, with the tools that the turn format has."""
        tools = [dict(tool) for tool in self.turn_format.tools]
        text: str = tokenizer.apply_chat_template(
            self.messages(task), tools=tools or None, add_generation_prompt=True, tokenize=False
        )
        # A property of the template, and so the same for all tasks of a run.
        object.__setattr__(self, "_opens_thought", text.rstrip().endswith("<think>"))
        return text

    def rendered(self, observation: str, tokenizer: Any) -> str:
        """The observation as the turn format writes it."""
        return self.turn_format.rendered(tokenizer, observation)

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Answer a search with its result, and anything else with a reward."""
        turn = turns[-1]
        if turn.truncated:
            return _broken("length", "the turn was cut by the token limit")
        opened = "<think>" * (self._opens_thought and len(turns) == 1)
        parsed = self.turn_format.parsed(opened + turn.text)
        if isinstance(parsed, Answer):
            match = exact_match(parsed.text, task.answers)
            return Reply(
                stop="end",
                reward=match,
                success=match == 1.0,
                label=f"answer {parsed.text}",
                outcome={"answer": parsed.text, "f1": f1(parsed.text, task.answers)},
            )
        if isinstance(parsed, Call):
            if len(turns) > self.max_calls:
                return _broken("budget", f"call {len(turns)} of at most {self.max_calls}")
            return await self._result(parsed.query)
        return _broken("malformed", parsed.fault)

    async def _result(self, query: str) -> Reply:
        label, outcome = f"search {query}", dict[str, Any](query=query)
        try:
            documents = _checked(await self.search_tool(query))
        except ToolError as error:
            failure = error.failure()
            return Reply(stop="failure", failure=failure, label=label, outcome=outcome)
        outcome["documents"] = [document.title for document in documents]
        observation = self.turn_format.result(documents)
        return Reply(stop="continue", observation=observation, label=label, outcome=outcome)

    def failure_text(self, failure: Failure) -> str:
        """A result that says that the search failed."""
        return self.turn_format.failed

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that changes a tag, or a chat template that does not fit."""
        _check_round_trip(tokenizer, self.turn_format.tags, type(self).__name__)
        self.turn_format.check(tokenizer)


def _check_round_trip(tokenizer: Tokenizer, texts: Sequence[str], needed_by: str) -> None:
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if back.split() != text.split():
            raise SpanwiseError(
                f"the tokenizer reads {text!r} back as {back!r}; {needed_by} needs one that "
                "keeps it as it is"
            )


def _broken(stop: Stop, fault: str) -> Reply:
    outcome = {"fault": fault, "f1": 0.0}
    return Reply(stop=stop, reward=BROKEN_FORMAT_REWARD, success=False, outcome=outcome)


def _checked(result: object) -> list[Document]:
    several = isinstance(result, (list, tuple))
    documents = list(cast(Sequence[object], result)) if several else [result]
    for document in documents:
        if not isinstance(document, Document):
            raise ToolError(f"the tool returned {type(document).__name__}, not documents")
    return cast(list[Document], documents)


@dataclass(frozen=True, kw_only=True)
class MultiHopSearch(SearchEnvironment):
    """Questions over a chain of facts of a made-up world, each in a document of its own.

    Nothing is read or downloaded: the world, its documents and a BM25 index over them are
    made from the seed when they are first needed (about a second).

    Raises:
      ValueError: if an option is out of range.

    Example:
      >>> env = MultiHopSearch(world=SearchWorld(train_people=50, dev_people=20, test_people=20))
      >>> env.tasks("train")[1].question.startswith("who is ")
      True
    """

    world: SearchWorld = SearchWorld()
    min_hops: int = 1
    """Number of facts to look up for the easiest questions."""

    max_hops: int = 4
    """Number of facts to look up for the hardest questions."""

    train_questions: int = 2000
    """Number of questions to train on."""

    dev_questions: int = 200
    """Number of development questions."""

    test_questions: int = 400
    """Number of test questions."""

    num_documents: int = 1
    """Number of documents in a result."""

    deadline_s: float = 10.0
    """Deadline of a search, in seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_hops <= self.max_hops <= len(RELATIONS):
            raise SpanwiseError(
                f"hops must satisfy 1 <= min_hops <= max_hops <= {len(RELATIONS)}, "
                f"got {self.min_hops} and {self.max_hops}"
            )
        if self.max_calls < self.max_hops:
            raise SpanwiseError(
                f"max_calls {self.max_calls} leaves questions with {self.max_hops} hops "
                "unanswerable; raise max_calls or lower max_hops"
            )
        if self.num_documents < 1 or self.deadline_s <= 0:
            raise SpanwiseError(
                f"num_documents and deadline_s must be positive, got {self.num_documents} "
                f"and {self.deadline_s}"
            )

    @property
    def search_tool(self) -> SearchTool:
        """BM25 over the world's documents."""
        return self._tool

    @cached_property
    def _tool(self) -> SearchTool:
        return SearchTool(
            index=DocumentIndex(self.world.documents),
            num_documents=self.num_documents,
            deadline_s=self.deadline_s,
        )

    @cached_property
    def _tasks(self) -> dict[str, tuple[Task, ...]]:
        counts: dict[Split, int] = {
            "train": self.train_questions, "dev": self.dev_questions, "test": self.test_questions
        }  # fmt: skip
        return {
            split: self.world.questions(split, count, self.min_hops, self.max_hops)
            for split, count in counts.items()
        }

    def tasks(self, split: Split) -> Sequence[Task]:
        """Questions with equally many of each number of hops; ``info["hops"]`` says it."""
        return self._tasks[split]

    def failure_text(self, failure: Failure) -> str:
        """An empty result: the small model has words for no other. The node keeps the failure."""
        return result_text([])

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that changes a tag, a question, a document or an empty result."""
        super().check(tokenizer)
        texts = [task.question for task in self.tasks("train")[:20]]
        texts += [result_text([document]) for document in self.world.documents[:20]]
        texts.append(result_text([]))
        _check_round_trip(tokenizer, texts, type(self).__name__)
