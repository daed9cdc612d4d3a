"""Kinds of span: where one decision of the model ends and the next begins.

A ``Partition`` cuts the model tokens of a batch into spans. The same object serves in three
places: as the spans at whose boundaries *credit* is bootstrapped (``SpanAdvantage.spans``), as
the spans over which the policy *ratio* is averaged (``Objective.ratio_spans``), and as those
of the *importance* correction (``ImportanceCorrection.spans``). What people call different
algorithms are pairs of the first two:

    PPO with GAE   Token            and  Token
    GRPO, DAPO     Trajectory       and  Token
    GSPO           Trajectory       and  Trajectory
    SAE            LowProbability   and  Token
    AT²PO          Turn, by tree    and  Turn

To add your own, subclass ``Partition`` in a file of yours. The arithmetic of ours is in
``spanwise.spans``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from spanwise import spans
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """A division of the model tokens of a batch into spans.

    Example:
      >>> @dataclass(frozen=True, kw_only=True)
      ... class Pairs(Partition):
      ...     def __call__(self, batch):
      ...         return spans.fixed_length(batch.mask, 2)
    """

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """``[N, T]`` int64, the number of each model token's span within its row, not falling
        along ``T``; -1 where ``batch.mask`` is False.
        """

    def bind(self, tokenizer: Any) -> Partition:
        """The same partition once it has looked up what it needs in the vocabulary."""
        return self


@dataclass(frozen=True, kw_only=True)
class Token(Partition):
    """Every token is a span: the credit of GAE, the ratio of PPO, GRPO and DAPO."""

    def __call__(self, batch: Batch) -> Tensor:
        return spans.by_token(batch.mask)


@dataclass(frozen=True, kw_only=True)
class Turn(Partition):
    """Every turn of the agent is a span, as the tree records them: the ratio of AT²PO."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.turns


@dataclass(frozen=True, kw_only=True)
class Trajectory(Partition):
    """The whole trajectory is one span: Monte Carlo credit, the ratio of GSPO."""

    def __call__(self, batch: Batch) -> Tensor:
        return spans.whole(batch.mask)


@dataclass(frozen=True, kw_only=True)
class _ByLogprob(Partition):
    """Spans by how unlikely their tokens were when they were sampled."""

    side: spans.Side = "start"
    """Whether an unlikely token opens a span (Eq. 9 as code reads it) or closes one (``end``: Eq. 5
    and 6 to the letter)."""

    logprobs: Literal["engine", "sampling"] = "engine"
    """Log-probs that decide: the model's, at temperature 1, or those of the distribution that was
    drawn from, with temperature, ``top_p`` and ``top_k``."""

    def _logprobs(self, batch: Batch) -> Tensor:
        return {"engine": batch.engine_logprobs, "sampling": batch.sampling_logprobs}[self.logprobs]


@dataclass(frozen=True, kw_only=True)
class LowProbability(_ByLogprob):
    """Boundaries at tokens that were unlikely when they were sampled: the segments of SAE
    (arXiv 2601.07320, Eq. 5).

    The paper tests ``P_model(s_t | s_<t) < p`` and samples at temperature 0.6, without a word on
    whose probability is meant. We read the model's own, at temperature 1 (``logprobs="engine"``):
    the formula names the model, and where it hesitates does not depend on how it is sampled. Code
    whose log-probs are all tempered, as verl's are, would give ``"sampling"``. At temperature 1
    the two are one.
    """

    threshold: float = 0.2
    """Probability below which a token is at a boundary; 0: one span a row, above 1: every token."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise SpanwiseError(
                f"LowProbability.threshold is a probability, at least 0, got {self.threshold}"
            )

    def __call__(self, batch: Batch) -> Tensor:
        return spans.by_probability(
            self._logprobs(batch), batch.mask, threshold=self.threshold, side=self.side
        )


@dataclass(frozen=True, kw_only=True)
class MeanLength(_ByLogprob):
    """As ``LowProbability``, with the threshold that gives a batch spans of this mean length."""

    length: float = 8.0
    """Mean length of the batch's spans, in model tokens."""

    def __post_init__(self) -> None:
        if not self.length >= 1:
            raise SpanwiseError(f"MeanLength.length is at least 1 token, got {self.length}")

    def __call__(self, batch: Batch) -> Tensor:
        return spans.by_mean_length(
            self._logprobs(batch), batch.mask, mean_length=self.length, side=self.side
        )


@dataclass(frozen=True, kw_only=True)
class HighEntropy(Partition):
    """Tokens at which the policy was undecided open a span."""

    quantile: float = 0.8
    """Share of the batch's tokens whose entropy is too low to open a span, from 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise SpanwiseError(f"HighEntropy.quantile lies in [0, 1], got {self.quantile}")

    def __call__(self, batch: Batch) -> Tensor:
        if batch.token_entropies is None:
            raise ValueError("spans by entropy need a batch with token_entropies")
        return spans.by_entropy(batch.token_entropies, batch.mask, quantile=self.quantile)


@dataclass(frozen=True, kw_only=True)
class FixedLength(Partition):
    """Every so many model tokens a span begins."""

    length: int = 8
    """Length of a span, in model tokens."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SpanwiseError(f"FixedLength.length is at least 1 token, got {self.length}")

    def __call__(self, batch: Batch) -> Tensor:
        return spans.fixed_length(batch.mask, self.length)


@dataclass(frozen=True, kw_only=True)
class Delimiter(Partition):
    """Spans end with a token whose text has a delimiter in it, such as the end of a line."""

    text: str = "\n"
    """The delimiter."""

    def __post_init__(self) -> None:
        if not self.text:
            raise SpanwiseError('Delimiter.text must not be empty; "\\n" is the end of a line')

    def __call__(self, batch: Batch) -> Tensor:
        raise ValueError("spans by delimiter need bind(tokenizer) first")

    def bind(self, tokenizer: Any) -> Partition:
        ids = [i for i in range(len(tokenizer)) if self.text in tokenizer.decode([i])]
        if not ids:
            raise SpanwiseError(f"no token's text has the delimiter {self.text!r} in it")
        return _ClosedByTokens(token_ids=tuple(ids))


@dataclass(frozen=True, kw_only=True)
class _ClosedByTokens(Partition):
    """Spans end with one of these tokens."""

    token_ids: tuple[int, ...]

    def __call__(self, batch: Batch) -> Tensor:
        return spans.by_delimiter(batch.tokens, batch.mask, delimiters=self.token_ids)
