"""How rows are split, and when they are packed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.learn.microbatches import MIN_PACKING_GAIN, microbatches
from spanwise.models.tree_attention import TrunkCost
from tests.models.rows import Rows, random_rows

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
    num_ranks=st.integers(1, 4),
)
def test_each_row_stands_in_one_part_and_parts_fit(
    seed: int, depth: int, budget: int, cost: TrunkCost | None, num_ranks: int
) -> None:
    tokens, _, lengths = random_rows(seed, depth=depth)
    parts = microbatches(tokens, lengths, budget=budget, cost=cost, num_ranks=num_ranks)
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
    assert MIN_PACKING_GAIN == 0.95
    assert (parts[0].tree is not None) == (shared >= 2)
    assert parts[0].num_tokens == (80 - 3 * shared if shared >= 2 else 80)


@pytest.mark.parametrize(
    ("num_ranks", "sizes"),
    [(1, [940]), (2, [620, 620]), (4, [460] * 4), (8, [380] * 8)],
)
def test_a_tree_is_cut_for_every_process_to_have_a_part(num_ranks: int, sizes: list[int]) -> None:
    """8 rows of 380 tokens that share 300: the prompt again, and the 80 of each row."""
    tokens, _, lengths = flat_rows(8, shared=300, own=80)
    parts = microbatches(tokens, lengths, budget=10**5, cost=LAYERS_ALONE, num_ranks=num_ranks)
    assert [part.num_tokens for part in parts] == sizes


@pytest.mark.parametrize(("num_ranks", "sizes"), [(2, [200, 200]), (4, [100] * 4)])
def test_trees_are_cut_between_them_if_that_is_even(num_ranks: int, sizes: list[int]) -> None:
    """4 trees of 4 rows that share 60 of 70 tokens: 100 packed each."""
    tokens = torch.cat([flat_rows(4, shared=60, own=10)[0] + 100 * tree for tree in range(4)])
    long = torch.full((16,), 70)
    parts = microbatches(tokens, long, budget=10**5, cost=LAYERS_ALONE, num_ranks=num_ranks)
    assert [part.num_tokens for part in parts] == sizes


def test_rows_stay_rows_if_packing_left_a_process_without_work() -> None:
    """2 rows that share half: 150 tokens for one process, or 100 for each of two."""
    tokens, _, lengths = flat_rows(2, shared=50, own=50)
    (packed,) = microbatches(tokens, lengths, budget=10**5, cost=LAYERS_ALONE)
    assert packed.tree is not None and packed.num_tokens == 150
    parts = microbatches(tokens, lengths, budget=10**5, cost=LAYERS_ALONE, num_ranks=2)
    assert [part.num_tokens for part in parts] == [100, 100]
    assert all(part.tree is None for part in parts)


def test_a_few_tokens_of_a_small_model_are_not_worth_the_work_of_packing() -> None:
    """The same share is saved; what packing costs for a start is the same for few and many."""
    small = TrunkCost(per_token=8e5, per_pair=1e3)
    few = flat_rows(2, shared=20, own=20)
    many = flat_rows(2, shared=200, own=200)
    assert microbatches(few[0], few[2], budget=10**5, cost=small)[0].tree is None
    assert microbatches(many[0], many[2], budget=10**5, cost=small)[0].tree is not None


def test_padding_counts_as_well() -> None:
    """Rows that share nothing are packed where padding would be enough of what is computed."""
    tokens, lengths = torch.arange(520).view(4, 130), torch.tensor([100, 110, 120, 130])
    plain = microbatches(tokens, lengths, budget=1000, cost=None)
    assert [part.num_tokens for part in plain] == [3 * 120, 130]
    packed = microbatches(tokens, lengths, budget=1000, cost=LAYERS_ALONE)
    assert packed[0].tree is not None and packed[0].num_tokens == 460
    apart = microbatches(tokens, lengths, budget=130, cost=LAYERS_ALONE)
    assert [part.num_tokens for part in apart] == lengths.tolist() and apart[0].tree is None
