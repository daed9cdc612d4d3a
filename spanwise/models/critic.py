"""The critic: a value head on a copy of the model, or on the policy's own trunk.

A value is predicted *before* each model token, from the hidden state of the token that
precedes it: what is known when the token is chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from spanwise.errors import SpanwiseError
from spanwise.models.execution import match_compilation
from spanwise.models.loading import ModelError
from spanwise.models.lora import copy_trainable
from spanwise.models.packing import TokenTree
from spanwise.models.sharding import gather, gathered
from spanwise.models.tree_attention import TrunkCost, hidden_states

CRITIC_FILE = "critic.safetensors"
"""Beside the policy in a checkpoint."""

NUM_SURPRISE_FEATURES = 3

INNER_TO_HIDDEN = 4
"""Width of the inner layer of a head on the policy's trunk, for each of the trunk's."""


class Values(NamedTuple):
    """The critic's values of a batch; float32, or float64 from such a model."""

    values: Tensor
    """``[N, T]`` before each model token, in units of reward; 0 where masked."""

    end_values: Tensor
    """``[N]`` after the last model token."""


class ValueModel(torch.nn.Module, ABC):
    """A value head over the last hidden state of some trunk.

    The head ends in weights of 0: every value is 0 before the first update. It has the device of
    ``like``, a weight of the trunk, and is linear unless it has an ``inner_size``.
    """

    def __init__(
        self, hidden_size: int, like: Tensor, *, reads_surprise: bool, inner_size: int = 0
    ) -> None:
        super().__init__()
        self.reads_surprise = reads_surprise
        dtype = torch.promote_types(like.dtype, torch.float32)
        width = hidden_size + reads_surprise * NUM_SURPRISE_FEATURES
        self.inner = None
        if inner_size:
            with torch.random.fork_rng(devices=[]):  # drawn alike in every process and every run
                torch.manual_seed(0)
                inner = torch.nn.Linear(width, inner_size, dtype=dtype)
            self.inner, width = inner.to(like.device), inner_size
        self.head = torch.nn.Linear(width, 1, dtype=dtype, device=like.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    @abstractmethod
    def cost(self) -> TrunkCost:
        """The cost of the trunk."""

    @abstractmethod
    def hidden(self, tokens: Tensor, lengths: Tensor, tree: TokenTree | None) -> Tensor:
        """``hidden_states`` with as much gradient as the trunk is to have."""

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        lengths: Tensor,
        logprobs: Tensor,
        tree: TokenTree | None = None,
    ) -> Values:
        """Values of right-padded rows.

        Args:
          tokens: ``[N, T]`` int64, right-padded.
          mask: ``[N, T]`` bool, True on model tokens; never on the first of a row.
          lengths: ``[N]`` int64, tokens before the padding.
          logprobs: ``[N, T]`` of the tokens under the policy that sampled them; read only
            with ``reads_surprise``, and there those before the token alone.
          tree: The same rows packed: the trunk then computes what they share once.

        Raises:
          ValueError: if ``mask`` is True on a row's first token, which nothing precedes.
        """
        if bool(mask[:, 0].any()):
            raise SpanwiseError("the first token of a row has nothing before it to be valued from")
        hidden = self.hidden(tokens, lengths, tree).to(self.head.weight.dtype)
        first = self.head if self.inner is None else self.inner
        of_hidden, of_surprise = first.weight.split(
            [hidden.shape[1], first.in_features - hidden.shape[1]], 1
        )
        read = F.linear(hidden, of_hidden, first.bias)
        if self.reads_surprise:
            surprise = surprise_features(logprobs, mask).to(read.dtype)
            read = _in_rows(read, tokens, tree) + F.linear(surprise, of_surprise)
        flat = read if self.inner is None else self.head(F.silu(read))
        after = flat if self.reads_surprise else _in_rows(flat, tokens, tree)
        after = after.squeeze(-1)  # saw token t
        before = F.pad(after[:, :-1], (1, 0))
        position = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(mask, position, 0).amax(1, keepdim=True)
        return Values(torch.where(mask, before, 0), after.gather(1, last).squeeze(1))

    @contextmanager
    def trunk_frozen(self) -> Iterator[None]:
        """While this lasts, a trunk that is not the critic's own has no gradient."""
        yield

    def weights(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The whole weights that are the critic's own; of a split one, every rank has to ask."""
        weights = gather(self._own_state(), keep=keep)
        return {name: tensor.contiguous() for name, tensor in weights.items()}

    def _own_state(self) -> dict[str, Tensor]:
        """The state without frozen weights, which belong to the policy's model."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {k: v for k, v in self.state_dict().items() if k not in frozen}

    def restore(self, folder: Path) -> None:
        """Read the weights back into a critic that is not split.

        Raises:
          ModelError: if the folder has no critic, or that of another kind or shape.
        """
        path = folder / CRITIC_FILE
        if not path.is_file():
            raise ModelError(f"{folder} has no critic ({CRITIC_FILE}); was it trained with one?")
        weights = load_file(path)
        try:
            if weights.keys() != self._own_state().keys():
                raise RuntimeError("other weights")
            self.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise ModelError(
                f"{path} is the critic of another model or another kind of critic"
            ) from error


class SeparateCritic(ValueModel):
    """A trunk of its own, copied from the policy when it is built.

    From a policy with an adapter, the copy has an adapter of its own, on the same frozen
    weights.
    """

    def __init__(self, policy: Any, *, reads_surprise: bool = False) -> None:
        trunk = policy.base_model
        like = next(trunk.parameters())
        super().__init__(_hidden_size(policy), like, reads_surprise=reads_surprise)
        self.trunk = copy_trainable(trunk)
        match_compilation(trunk, self.trunk)

    def cost(self) -> TrunkCost:
        return TrunkCost.of(self.trunk)

    def hidden(self, tokens: Tensor, lengths: Tensor, tree: TokenTree | None) -> Tensor:
        return hidden_states(self.trunk, tokens, lengths, tree)


class SharedCritic(ValueModel):
    """A head on the policy's trunk.

    The trunk is not there for the critic, and stands still while the head is fitted alone. So
    the head has a layer of its own, as wide as those of a transformer: a linear one on the
    same hidden state explains less and follows a policy that moves too slowly.

    The head has the whole gradient of the value loss, the trunk a share of it:

        h' = share * h + (1 - share) * stopgrad(h)

    Limits: with a share of 0 the head reads the policy and cannot disturb it; with 1 the
    trunk is trained by the sum of both losses.
    """

    def __init__(self, policy: Any, trunk_gradient: float, *, reads_surprise: bool = False) -> None:
        like, size = next(policy.parameters()), _hidden_size(policy)
        super().__init__(
            size, like, reads_surprise=reads_surprise, inner_size=INNER_TO_HIDDEN * size
        )
        self._policy = (policy,)  # a tuple hides it: its weights are saved with the policy
        self.trunk_gradient = trunk_gradient

    def cost(self) -> TrunkCost:
        return TrunkCost.of(self._policy[0])

    def hidden(self, tokens: Tensor, lengths: Tensor, tree: TokenTree | None) -> Tensor:
        def policy_hidden(policy: Any) -> Tensor:
            return hidden_states(policy.base_model, tokens, lengths, tree)

        share = self.trunk_gradient
        with torch.set_grad_enabled(torch.is_grad_enabled() and share > 0):
            hidden = gathered(policy_hidden, self._policy[0])
        return hidden if share == 1 else hidden.detach() + share * (hidden - hidden.detach())

    @contextmanager
    def trunk_frozen(self) -> Iterator[None]:
        share, self.trunk_gradient = self.trunk_gradient, 0.0
        try:
            yield
        finally:
            self.trunk_gradient = share


def surprise_features(logprobs: Tensor, mask: Tensor) -> Tensor:
    """How unlikely the model tokens up to and with each token were.

    A slip is a token that the policy found unlikely. A small trunk is long in learning to
    check the work; the policy's own log-probs say at once where it went astray.

        s_t, the largest of s up to t, log(1 + the sum of s up to t)    with s = -logp

    They come in tenths of a nat: a head that starts at 0 and moves by steps of the learning
    rate then gives them weight about as soon as it does the hidden state.

    Args:
      logprobs: ``[N, T]`` float, under the policy that sampled; ignored where masked.
      mask: ``[N, T]`` bool, True on model tokens.

    Returns:
      ``[N, T, 3]``, detached.

    Example:
      >>> surprise_features(torch.tensor([[-1.0, 9.0, -0.5]]), torch.tensor([[True, False, True]]))
      tensor([[[10.0000, 10.0000,  6.9315],
               [ 0.0000, 10.0000,  6.9315],
               [ 5.0000, 10.0000,  9.1629]]])
    """
    surprise = torch.where(mask, -logprobs.detach(), 0)
    sums = surprise.cumsum(1).clamp(min=0).log1p()
    return 10 * torch.stack([surprise, surprise.cummax(1).values, sums], -1)


def _in_rows(x: Tensor, tokens: Tensor, tree: TokenTree | None) -> Tensor:
    """``[N, T, D]`` of what stands flat, rows or packed."""
    return x.view(*tokens.shape, -1) if tree is None else x[tree.index]


def _hidden_size(policy: Any) -> int:
    return int(policy.config.get_text_config().hidden_size)
