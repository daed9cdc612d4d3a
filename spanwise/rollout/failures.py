"""What is done about failures: retry, tell the model, leave the branch out, or stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn

from spanwise.errors import SpanwiseError
from spanwise.tree import Failure, FailureKind, Tree

Showable = Literal["tool_timeout", "tool_error", "tool_crash", "malformed_call"]
"""Kinds of failure after which a trajectory can go on."""

FEW_CALLS = 20
"""Fewer tool calls than this tell nothing about the tool."""


class RunStopped(SpanwiseError):
    """Something outside the model is broken, and the run does not go on."""


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What becomes of a failure, by its kind.

    A failed call is made again if its kind is in ``retry``. If it fails for good, either the
    model is told in place of the observation and the trajectory goes on (``show``), or the
    branch has no reward and is left out of the update. A failure is never scored 0. A retried
    turn is drawn with the same seed, so an engine that comes back leaves no trace in what is
    sampled.

    Raises:
      ValueError: if a setting is out of range.
    """

    retry: tuple[FailureKind, ...] = ("tool_error", "tool_crash", "engine_error")
    """Kinds of failed call to make again. A timeout is not among them by default: it would
    cost its deadline again."""

    show: tuple[Showable, ...] = ("tool_timeout", "tool_error", "tool_crash")
    """Kinds of failure that the model is told of, so that the trajectory goes on; the
    environment words the message (``failure_text``)."""

    retries: int = 2
    """Number of further attempts at a call that failed."""

    backoff_s: float = 0.5
    """Seconds before the first retry; doubled before each further one."""

    max_excluded: float = 0.5
    """Largest share of a step's branches that may be left out, and of its tool calls that may
    fail for good, before the run stops: a tool that is down teaches the model to do without."""

    reply_deadline_s: float = 300.0
    """Seconds the environment has for a reply, tools and reward included."""

    engine_deadline_s: float = 1800.0
    """Seconds the engine has for a turn, waiting for a place in a batch included."""

    def __post_init__(self) -> None:
        if self.retries < 0 or self.backoff_s < 0 or not 0 <= self.max_excluded <= 1:
            raise SpanwiseError(
                "failures needs retries >= 0, backoff_s >= 0 and max_excluded from 0 to 1, got "
                f"{self.retries}, {self.backoff_s} and {self.max_excluded}"
            )
        if self.reply_deadline_s <= 0 or self.engine_deadline_s <= 0:
            raise SpanwiseError(
                "reply_deadline_s and engine_deadline_s must be positive, got "
                f"{self.reply_deadline_s} and {self.engine_deadline_s}"
            )

    def check(
        self, trees: Sequence[Tree], raised: Mapping[str, Exception] = MappingProxyType({})
    ) -> None:
        """Refuse to go on if too much of these rollouts failed.

        ``raised`` holds exceptions by the messages of the failures that they became.

        Raises:
          RunStopped: with the number of failures of each kind, and one message of each, from
            the exception behind the first failure of the commonest kind.
        """
        leaves = [leaf for tree in trees for leaf in tree.leaves()]
        lost = [leaf.failure for leaf in leaves if leaf.failure is not None]
        calls = [node for tree in trees for node in tree.nodes if node.stop == "continue"]
        shown = [f for node in calls for f in node.faults if f.then == "shown"]
        if len(lost) > self.max_excluded * len(leaves):
            self._stop(lost, len(leaves), "branches", raised)
        if len(calls) >= FEW_CALLS and len(shown) > self.max_excluded * len(calls):
            self._stop(shown, len(calls), "tool calls", raised)

    def _stop(
        self, failures: Sequence[Failure], total: int, what: str, raised: Mapping[str, Exception]
    ) -> NoReturn:
        counts = Counter(failure.kind for failure in failures).most_common()
        said = {failure.kind: failure.message for failure in reversed(failures)}
        reasons = "; ".join(f"{n} {kind} ({said[kind]})" for kind, n in counts)
        raise RunStopped(
            f"{len(failures)} of {total} {what} failed, more than "
            f"failures.max_excluded = {self.max_excluded:g} allows: {reasons}"
        ) from raised.get(said[counts[0][0]])


def failures_in(trees: Sequence[Tree]) -> Iterator[Failure]:
    """Every failure in some trees, including those that were retried, shown or cut."""
    for tree in trees:
        for node in tree.nodes:
            yield from node.faults
            if node.failure is not None:
                yield node.failure
