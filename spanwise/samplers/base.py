"""The interface of sampling engines: token ids in, token ids and log-probs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from spanwise.errors import SpanwiseError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Temperature of the draw; 0 takes the most likely token."""

    top_p: float = 1.0
    """Probability that the tokens kept, the fewest that do, must have in all."""

    top_k: int = 0
    """Number of most likely tokens kept; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SpanwiseError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got {self}"
            )

    @property
    def leaves_out(self) -> bool:
        """Whether some tokens are never drawn, however probable the model finds them."""
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to sample."""

    prompt: tuple[int, ...]
    seed: int
    """Seed of the draw, which depends on neither the batch nor the order of completion."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    """The turn ends with the token that completes one of these strings."""

    sampling: Sampling = Sampling()
    tree: str = ""
    """Which tree of the run it belongs to: requests of one tree begin alike, and several
    servers keep them together. It decides nothing of the draw."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The sampled turn. The token that stopped it is part of it."""

    tokens: tuple[int, ...]
    engine_logprobs: tuple[float, ...]
    """Log-probs of the tokens under the model at temperature 1."""

    sampling_logprobs: tuple[float, ...]
    """Log-probs of the tokens under the distribution they were drawn from."""

    finish: Literal["stop", "eos", "length"]


class Sampler(ABC):
    """Draws turns from a model. Many ``sample`` calls are under way at once."""

    @abstractmethod
    async def sample(self, request: Request) -> Completion:
        """Draw one turn.

        Raises:
          EngineError: if the engine cannot; the branch is then left out of the update.
        """

    @abstractmethod
    def update_weights(self, model: Any) -> None:
        """Sample from ``model`` as it is now; nothing cached from before is used.

        Every training process calls it.
        """

    def pause(self) -> None:
        """Nothing is sampled until the policy has been updated: memory may be given back."""

    def close(self) -> None:
        """Give back what the engine holds."""


@dataclass(frozen=True, kw_only=True)
class Engine(ABC):
    """The settings of a sampler; ``build`` makes the sampler itself."""

    reads_policy: ClassVar[bool] = True
    """Whether turns are computed from the model that ``build`` and ``update_weights`` are
    given, which is then whole in every training process. False: the sampler has weights of
    its own, and takes new ones over in ``update_weights`` from a model that may be split."""

    def check(self) -> None:
        """Called before a model is loaded.

        Raises:
          ValueError: if the engine cannot run here.
        """

    @abstractmethod
    def build(self, model: Any, tokenizer: Any) -> Sampler:
        """A sampler that draws from ``model``, a causal language model of transformers.

        Every training process calls it.
        """


class EngineError(SpanwiseError):
    """The sampling engine failed on a request."""
