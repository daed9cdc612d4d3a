from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from spanwise.samplers.embedded.kv_cache import (
    Chunk,
    Shape,
    Slots,
    Step,
    _attend_by_block,
    _attend_by_token,
)

SHAPE = Shape(layers=2, kv_heads=2, head_dim=16, dtype=torch.float32, device=torch.device("cpu"))


def test_slots_keep_what_they_hold_when_they_grow():
    slots = Slots(SHAPE, 10_000)
    slots.reserve(1, 10)
    segment = torch.randn(2, 2, 2, 5, 16)
    slots.put(0, 3, segment)
    slots.reserve(20, 100)
    assert torch.equal(slots.take(0, 3, 8), segment)
    slots.move(0, 17, 8)
    assert torch.equal(slots.take(17, 3, 8), segment)
    assert slots.take(5, 0, 100).count_nonzero() == 0


def test_slots_stay_within_their_bound():
    slots = Slots(SHAPE, 64 * 64)
    assert slots.fits(64, 64) and not slots.fits(65, 64) and not slots.fits(33, 65)
    slots.reserve(64, 64)
    slots.reserve(16, 256)  # longer rows: fewer of them
    assert slots.kv.shape[2] * slots.kv.shape[4] <= 64 * 64


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_a_step_is_causal_attention_over_each_row(groups: int):
    """Three rows: one decodes at 5, one runs a chunk from 2 to 7, one decodes at 0."""
    torch.manual_seed(0)
    slots = Slots(SHAPE, 10_000)
    slots.reserve(3, 64)
    past = {0: 5, 1: 2, 2: 0}
    for slot, n in past.items():
        slots.put(slot, 0, torch.randn(2, 2, 2, n, 16))
    before = slots.kv.clone()
    step = Step(slots, [5, None, 0], [Chunk(start=16, stop=21, slot=1, first=2)])
    assert step.num_entries == 32
    assert step.positions.tolist() == [5, 0, 0, *[0] * 13, 2, 3, 4, 5, 6, *[0] * 11]
    query = torch.randn(32, 2, groups, 16)
    key, value = torch.randn(2, 32, 2, 16)
    out = step.attention(1, query, key, value, 0.25)
    assert torch.equal(slots.kv[0], before[0])  # the other layer is left alone
    assert out.isfinite().all()

    entries = {0: [0], 1: list(range(16, 21)), 2: [2]}
    for slot, mine in entries.items():
        keys = torch.cat([before[1, 0, slot, :, : past[slot]], key[mine].transpose(0, 1)], 1)
        values = torch.cat([before[1, 1, slot, :, : past[slot]], value[mine].transpose(0, 1)], 1)
        for i, entry in enumerate(mine):
            seen = past[slot] + i + 1
            for k in range(2):
                scores = (query[entry, k].double() @ keys[k, :seen].double().T) * 0.25
                expected = scores.softmax(-1) @ values[k, :seen].double()
                torch.testing.assert_close(out[entry, k].double(), expected, atol=1e-6, rtol=1e-5)


def test_both_ways_to_run_a_chunk_agree():
    torch.manual_seed(0)
    query, keys, values = (
        torch.randn(7, 2, 3, 16),
        torch.randn(1, 2, 32, 16),
        torch.randn(1, 2, 32, 16),
    )
    mask = torch.zeros(7, 32).masked_fill(
        torch.arange(32) >= torch.arange(9, 16)[:, None], -torch.inf
    )
    by_token = _attend_by_token(query, keys, values, mask[:, None, None], 0.25)
    by_block = _attend_by_block(query, keys, values, mask[:, None, None], 0.25)
    torch.testing.assert_close(by_block, by_token, atol=1e-6, rtol=1e-5)
    plain = F.scaled_dot_product_attention(
        query.permute(1, 2, 0, 3),
        keys[0, :, None].expand(-1, 3, -1, -1),
        values[0, :, None].expand(-1, 3, -1, -1),
        mask,
        scale=0.25,
    )
    torch.testing.assert_close(by_token, plain.permute(2, 0, 1, 3), atol=1e-6, rtol=1e-5)
