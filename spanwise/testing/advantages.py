"""The properties of an advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.testing.assertions import require, require_close
from spanwise.tree import Failure, Node, Tree

TOLERANCE = 1e-5
"""Relative and absolute: sums over a batch in another order differ by roundings."""

SEEDS = range(5)

OUTSTANDING = 100.0
"""Far above every number of ``example_batch``."""

WITH_OBSERVATION, WORST_SIBLING = 2, 3
"""Rows of ``example_batch`` with the least return of their tree, of two turns and of one."""


def check_advantage(advantage: Callable[[Batch], Tensor]) -> None:
    """Check an ``Advantage``, or any function from a ``Batch`` to the credit of its tokens.

    On batches of small search trees, with and without forks, one of which has a failed branch,
    and with rewards on the way:

    - the result is ``[N, T]`` float, finite, detached, and 0 where ``batch.mask`` is False;
    - the batch is not changed, and the same batch gives the same bits again;
    - what stands at masked places, NaN included, changes nothing;
    - neither more padding nor longer observations change the credit of a model token;
    - neither the order of the rows nor that of the trees changes it;
    - rows with one model token and rows with none have finite credit, and so have a batch of
      one row and one in which all rewards are alike;
    - credit stands where it belongs, none of it a place too early or too late: a reward far
      above those of its siblings raises the last model token of its turn, be that the last
      turn of its row or one on the way; what comes after an observation reaches the turn
      before it; and if values are read, one far too high lowers the token that it was
      predicted before.

    What no property tells is whether the formula is the one that was meant: compare with
    numbers worked by hand.

    Args:
      advantage: Called with batches that have ``values``, ``end_values``, ``old_logprobs``,
        ``token_entropies`` and ``reference_logprobs``. It must heed the rewards.

    Raises:
      AssertionError: one line that says which property does not hold.

    Example:
      >>> from spanwise.credit import GroupAdvantage
      >>> check_advantage(GroupAdvantage())
      >>> check_advantage(lambda batch: batch.returns[:, None].expand(batch.mask.shape))
      Traceback (most recent call last):
      AssertionError: an advantage must be 0 where the mask is False
    """
    for seed in SEEDS:
        batch = example_batch(seed)
        credit = _checked(advantage, batch)
        again = advantage(batch)
        require(torch.equal(credit, again), "the same batch must give the same advantages again")
        of_model = credit[batch.mask]

        def same(
            other: Batch, change: str, expected: Tensor = of_model, *, where: str = ""
        ) -> None:
            found = _checked(advantage, other, where=where)[other.mask]
            require_close(
                found, expected, f"{change} must not change an advantage", tolerance=TOLERANCE
            )

        same(
            _with_masked(batch, torch.nan),
            "NaN at masked places",
            where=" with NaN at masked places: observations and padding must not be read",
        )
        same(_with_masked(batch, 1e3), "what stands at masked places")
        same(_padded(batch, 3), "more padding")
        same(example_batch(seed, observation_length=5), "a longer observation")
        order = torch.arange(batch.num_rows).flip(0)
        same(batch.take(order), "the order of the rows", credit[order][batch.mask[order]])
        swapped = example_batch(seed, reverse_trees=True)
        found = _checked(advantage, swapped)
        back = torch.cat([(swapped.groups == g).nonzero()[:, 0] for g in (2, 1, 0)])
        require_close(
            found[back][swapped.mask[back]],
            of_model,
            "the order of the trees must not change an advantage",
            tolerance=TOLERANCE,
        )
        alike = torch.isin(torch.arange(len(batch.parents)), batch.leaves).float()
        _checked(advantage, replace(batch, turn_rewards=alike))
        _checked(advantage, batch.take(torch.tensor([0])))
        for length in (0, 1):
            _checked(advantage, _with_row_cut(batch, row=1, length=length))
        _check_places(advantage, batch, credit)


def _check_places(advantage: Callable[[Batch], Tensor], batch: Batch, credit: Tensor) -> None:
    """Numbers that stand out, at one place after another, must show where they belong."""
    for row, turn, reward in (
        (WORST_SIBLING, 0, "a branch's last reward"),
        (WITH_OBSERVATION, 0, "a reward on the way"),
    ):
        end = (batch.turns[row] == turn).nonzero()[-1, 0]
        found = _checked(advantage, _paid(batch, int(batch.nodes[row, end]), OUTSTANDING))
        last = found[row, end]
        require(
            bool(last > credit[row, end]) and bool(last > 0),
            f"{reward} is paid for the last model token of its turn: far above those of its "
            f"siblings it must raise that token's advantage above 0, got {last:.6g} after "
            f"{credit[row, end]:.6g}",
        )
    gain = (found - credit)[row]
    require(
        bool((gain[batch.turns[row] > turn] <= gain[end] + TOLERANCE).all()),
        "a reward on the way is paid for the last model token of its turn: it must not raise a "
        "token after it by more",
    )

    row = WITH_OBSERVATION
    before = (batch.turns[row] == 0).nonzero()[-1, 0]
    values = _values(batch).clone()
    values[row, batch.turns[row] == 1] += OUTSTANDING
    other = _paid(batch, int(batch.leaves[row]), 2 * OUTSTANDING)
    found = _checked(advantage, replace(other, values=values))
    require(
        bool(found[row, before] != credit[row, before]),
        "what comes after an observation must reach the turn before it: other values and another "
        "reward there left the advantage of the turn's last token as it was",
    )

    if torch.equal(_checked(advantage, replace(batch, values=-_values(batch))), credit):
        return  # it does not read values
    first = batch.mask & (batch.mask.cumsum(1) == 1)
    found = _checked(advantage, replace(batch, values=_values(batch) + OUTSTANDING * first))
    above_least = found[first] - torch.where(batch.mask, found, torch.inf).amin(1)
    require(
        bool((above_least <= TOLERANCE).all()),
        "a value is predicted before its token: far too high at a row's first model token it must "
        f"give that token the row's least advantage, got one {above_least.max():.6g} above it",
    )


def _paid(batch: Batch, node: int, amount: float) -> Batch:
    """The batch with more paid for one node."""
    rewards = batch.turn_rewards.clone()
    rewards[node] += amount
    return replace(batch, turn_rewards=rewards)


def _values(batch: Batch) -> Tensor:
    assert batch.values is not None
    return batch.values


def _checked(advantage: Callable[[Batch], Tensor], batch: Batch, *, where: str = "") -> Tensor:
    """The advantages of a batch, once their form is known to be right."""
    before = {name: x.clone() for name, x in _tensors(batch).items()}
    credit = advantage(batch)
    for name, x in _tensors(batch).items():
        unchanged = torch.allclose(x, before[name], rtol=0, atol=0, equal_nan=True)
        require(unchanged, f"an advantage must not change its batch: {name} was written to")
    require(isinstance(credit, Tensor), f"an advantage is a tensor, got {type(credit).__name__}")
    require(
        credit.shape == batch.mask.shape,
        f"an advantage is [N, T] = {tuple(batch.mask.shape)}, got {tuple(credit.shape)}",
    )
    require(credit.dtype.is_floating_point, f"an advantage is float, got {credit.dtype}")
    require(
        not credit.requires_grad, "an advantage must be detached: nothing is learned through it"
    )
    require(not bool(credit[~batch.mask].any()), "an advantage must be 0 where the mask is False")
    require(bool(credit.isfinite().all()), f"an advantage must be finite{where}")
    return credit


def example_batch(seed: int, *, observation_length: int = 2, reverse_trees: bool = False) -> Batch:
    """A batch of three small trees; what is drawn for a model token depends on the seed alone.

    A tree with two forks and a failed branch, a tree of single turns, and one long chain.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(count: int) -> list[float]:
        return torch.rand(count, generator=generator, dtype=torch.float64).tolist()

    def node(
        *path: int, reward: float | None = None, goes_on: bool = False, failed: bool = False
    ) -> Node:
        length = 1 + int(4 * numbers(1)[0])
        logprobs = tuple(-3 * x for x in numbers(length))
        return Node(
            path=path,
            tokens=tuple(range(1, length + 1)),
            engine_logprobs=logprobs,
            text=f"turn {path[-1]}",
            observation=(9,) * observation_length * goes_on,
            observation_text="the same" * goes_on,
            stop="failure" if failed else "continue" if goes_on else "end",
            reward=reward,
            failure=Failure(kind="tool_error", message="made to fail") if failed else None,
        )

    def tree(name: str, *nodes: Node) -> Tree:
        root = Node(path=(), observation=(7, 8), observation_text=name, stop="prompt")
        return Tree(task_id=name, nodes=(root, *sorted(nodes, key=lambda n: n.path)))

    forks = tree(
        "forks",
        node(0, reward=-0.5, goes_on=True),
        node(0, 0, reward=1.5),
        node(0, 1, goes_on=True),
        node(0, 1, 0, reward=0.75),
        node(0, 1, 1, failed=True),
        node(1, reward=0.25, goes_on=True),
        node(1, 0, reward=-1.25),
    )
    turns = tree("turns", node(0, reward=0.0), node(1, reward=1.0), node(2, reward=1.0))
    chain = tree(
        "chain",
        node(0, reward=1.0, goes_on=True),
        node(0, 0, goes_on=True),
        node(0, 0, 0, reward=-0.5),
    )
    trees = [forks, turns, chain]
    batch = Batch.from_trees(trees[::-1] if reverse_trees else trees)

    # A draw belongs to the k-th model token of its row, wherever the row and the token stand.
    draws = torch.rand(4, batch.num_rows, 32, generator=generator)
    end_values = torch.rand(batch.num_rows, generator=generator)
    rows = torch.tensor([6, 3, 4, 5, 0, 1, 2] if reverse_trees else range(batch.num_rows))
    place = (batch.mask.cumsum(1) - 1).clamp(min=0)
    values, logprobs, entropies, reference = (
        torch.where(batch.mask, draw[rows].gather(1, place), 0) for draw in draws
    )
    return replace(
        batch,
        values=values,
        end_values=torch.where(rows % 2 == 0, end_values[rows], 0),
        old_logprobs=-3 * logprobs,
        token_entropies=entropies,
        reference_logprobs=-3 * reference,
    )


def _tensors(batch: Batch) -> dict[str, Tensor]:
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: x for name, x in named.items() if isinstance(x, Tensor)}


def _per_token(batch: Batch) -> dict[str, Tensor]:
    return {name: x for name, x in _tensors(batch).items() if x.shape == batch.mask.shape}


def _with_masked(batch: Batch, value: float) -> Batch:
    """Other numbers in every float tensor where the mask is False."""
    changed = {
        name: torch.where(batch.mask, x, value)
        for name, x in _per_token(batch).items()
        if x.dtype.is_floating_point
    }
    return replace(batch, **changed)


FILL = {"turns": -1, "nodes": -1}
"""Values at masked places; 0 for tensors not named here."""


def _padded(batch: Batch, columns: int) -> Batch:
    changed: dict[str, Any] = {
        name: torch.nn.functional.pad(x, (0, columns), value=FILL.get(name, 0))
        for name, x in _per_token(batch).items()
    }
    return replace(batch, **changed)


def _with_row_cut(batch: Batch, *, row: int, length: int) -> Batch:
    """One row keeps no more than ``length`` of its model tokens."""
    kept = batch.mask.clone()
    kept[row] &= batch.mask[row].cumsum(0) <= length
    changed = {
        name: torch.where(kept, x, FILL.get(name, 0)) for name, x in _per_token(batch).items()
    }
    return replace(batch, **(changed | {"mask": kept}))
