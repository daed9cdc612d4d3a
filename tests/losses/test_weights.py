"""Weights of shared turns against a count over the rows, on random sets of branches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.losses import weight_mean, weight_once, weight_per_leaf, weight_sqrt

WEIGHTS = [weight_per_leaf, weight_sqrt, weight_mean, weight_once]


@st.composite
def nodes_of_branches(draw):
    """``[N, T]``: each row a path of node numbers, a run of tokens each, with gaps between."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        row = []
        for node in sorted(draw(st.sets(st.integers(0, 4), max_size=4))):
            row += [-1] * draw(st.integers(0, 2)) + [node] * (1 + node % 3)
        rows.append(row)
    width = max(map(len, rows)) + 1
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@given(nodes_of_branches())
def test_weights_follow_their_definitions(nodes):
    found = [weight(nodes) for weight in WEIGHTS]
    for i, row in enumerate(nodes.tolist()):
        for t, node in enumerate(row):
            holders = [j for j, other in enumerate(nodes.tolist()) if node in other]
            c = len(holders)
            expected = (1.0, c**-0.5, 1 / c, float(holders[0] == i)) if node >= 0 else (0,) * 4
            for got, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(got[i, t], torch.tensor(float(wanted)))


@given(nodes_of_branches())
def test_a_turn_counts_once_in_all_or_once_a_branch_or_between(nodes):
    for node in set(nodes.flatten().tolist()) - {-1}:
        here = nodes == node
        length = here.sum(1).max()
        assert torch.isclose(weight_mean(nodes)[here].sum(), length.float())
        assert weight_once(nodes)[here].sum() == length
        assert weight_per_leaf(nodes)[here].sum() == here.sum()
        between = (length * here.sum()).sqrt()  # of so many branches: length times their root
        assert torch.isclose(weight_sqrt(nodes)[here].sum(), between)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_without_model_tokens_there_is_nothing_to_weight(weight, shape):
    assert weight(torch.full(shape, -1)).tolist() == torch.zeros(shape).tolist()
