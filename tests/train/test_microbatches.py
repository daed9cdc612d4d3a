"""How rows are split, and when they are packed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.models.tree_attention import TrunkCost
from spanwise.train.microbatches import WORTHWHILE, microbatches
from tests.models.test_packing import Rows, random_rows

LAYERS_ALONE = TrunkCost(per_token=1.0, per_pair=0.0)
"""Of a model so wide that attention costs nothing: packing saves what it saves of tokens."""


def flat_rows(num_rows: int, *, shared: int, own: int) -> Rows:
    """Rows that begin with the same tokens and then differ at once."""
    tokens = torch.zeros(num_rows, shared + own, dtype=torch.int64)
    tokens[:, shared:] = torch.arange(1, num_rows + 1)[:, None]
    return tokens, tokens > 0, torch.full((num_rows,), shared + own)


@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 5),
    budget=st.integers(1, 200),
    cost=st.sampled_from([None, LAYERS_ALONE, TrunkCost(per_token=1e3, per_pair=1.0)]),
)
def test_each_row_stands_in_one_part_and_parts_fit(
    seed: int, depth: int, budget: int, cost: TrunkCost | None
) -> None:
    tokens, _, lengths = random_rows(seed, depth=depth)
    parts = microbatches(tokens, lengths, budget=budget, cost=cost)
    rows = torch.cat([part.rows for part in parts])
    assert rows.sort().values.tolist() == list(range(len(lengths)))
    for part in parts:
        assert part.num_tokens <= budget or len(part.rows) == 1
        if part.tree is not None:
            assert part.num_tokens == len(part.tree.tokens)
            width = part.tree.index.shape[1]
            expected = tokens[part.rows, :width]
            inside = torch.arange(width) < lengths[part.rows, None]
            assert torch.equal(part.tree.tokens[part.tree.index][inside], expected[inside])


@pytest.mark.parametrize("shared", [0, 1, 2, 3, 4])
def test_rows_are_packed_if_that_saves_enough(shared: int) -> None:
    """4 rows of 20 tokens: sharing 1, 2 saves 3, 6 of 80; 5% would be 4."""
    tokens, _, lengths = flat_rows(4, shared=shared, own=20 - shared)
    parts = microbatches(tokens, lengths, budget=1000, cost=LAYERS_ALONE)
    assert WORTHWHILE == 0.95
    assert (parts[0].tree is not None) == (shared >= 2)
    assert parts[0].num_tokens == (80 - 3 * shared if shared >= 2 else 80)


def test_a_few_tokens_of_a_small_model_are_not_worth_the_work_of_packing() -> None:
    """The same share is saved; what packing costs for a start is the same for few and many."""
    small = TrunkCost(per_token=8e5, per_pair=1e3)
    few = flat_rows(2, shared=20, own=20)
    many = flat_rows(2, shared=200, own=200)
    assert microbatches(few[0], few[2], budget=10**5, cost=small)[0].tree is None
    assert microbatches(many[0], many[2], budget=10**5, cost=small)[0].tree is not None


def test_padding_counts_as_well() -> None:
    """Rows that share nothing are packed where padding would be most of what is computed."""
    tokens = torch.arange(400).view(2, 200)
    short = torch.tensor([200, 2])
    packed = microbatches(tokens, short, budget=1000, cost=LAYERS_ALONE)
    assert packed[0].tree is not None and packed[0].num_tokens == 202
    apart = microbatches(tokens, short, budget=200, cost=LAYERS_ALONE)
    assert [part.num_tokens for part in apart] == [2, 200] and apart[0].tree is None
