from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.samplers.embedded.prefix_cache import PrefixCache


def kv_of(tokens: tuple[int, ...]) -> torch.Tensor:
    """Stands in for keys and values: position ``i`` holds a number of all tokens up to ``i``."""
    running, values = 0, []
    for token in tokens:
        running = (running * 31 + token + 1) % 1_000_003
        values.append(float(running))
    return torch.tensor(values).reshape(1, 1, 1, -1, 1)


def keep(cache: PrefixCache, *tokens: int) -> None:
    cache.insert(tokens, lambda a, b: kv_of(tokens)[..., a:b, :].clone())


def stored(cache: PrefixCache, *tokens: int) -> list[float]:
    match = cache.match(tokens)
    values = [x for part in match.parts for x in part.flatten().tolist()]
    assert len(values) == match.length
    assert values == kv_of(tokens).flatten().tolist()[: match.length]
    return values


def test_a_sibling_and_a_next_turn_find_what_was_computed():
    cache = PrefixCache(100)
    keep(cache, 1, 2, 3)
    keep(cache, 1, 2, 3, 4, 5)
    assert len(stored(cache, 1, 2, 3, 9)) == 3
    assert len(stored(cache, 1, 2, 3, 4, 5, 6, 7)) == 5
    assert len(stored(cache, 1, 2)) == 2
    assert stored(cache, 2, 2, 3) == []
    assert cache.num_tokens == 5  # the second entry added two tokens


def test_a_segment_is_cut_where_sequences_part():
    cache = PrefixCache(100)
    keep(cache, 1, 2, 3, 4)
    keep(cache, 1, 2, 8, 9)
    assert cache.num_tokens == 6
    assert len(stored(cache, 1, 2, 3, 4)) == 4
    assert len(stored(cache, 1, 2, 8, 9)) == 4


def test_only_new_tokens_are_taken():
    cache, taken = PrefixCache(100), []

    def take(a: int, b: int) -> torch.Tensor:
        taken.append((a, b))
        return torch.zeros(1, 1, 1, b - a, 1)

    for tokens in [(1, 2, 3), (1, 2, 3), (1, 2), (1, 2, 5, 6), (1, 2, 3, 4)]:
        cache.insert(tokens, take)
    assert taken == [(0, 3), (2, 4), (3, 4)]


def test_the_end_that_was_not_used_for_longest_goes_first():
    cache = PrefixCache(8)
    keep(cache, 1, 2, 3, 4)
    keep(cache, 1, 2, 5, 6)
    stored(cache, 1, 2, 3, 4)
    keep(cache, 9, 9, 9)  # 9 tokens: down to 7 by dropping (5, 6)
    assert cache.num_tokens == 7
    assert len(stored(cache, 1, 2, 5, 6)) == 2
    assert len(stored(cache, 1, 2, 3, 4)) == 4
    assert len(stored(cache, 9, 9, 9)) == 3


def test_what_cannot_fit_is_not_kept():
    cache = PrefixCache(2)
    keep(cache, 1, 2, 3)
    assert cache.num_tokens == 0 and cache.match((1, 2, 3)).length == 0


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=25)


@settings(max_examples=200, deadline=None)
@given(sequences, st.integers(0, 30))
def test_never_another_sequence_s_values_and_never_past_the_bound(kept, bound):
    cache, seen = PrefixCache(bound), []
    for tokens in kept:
        keep(cache, *tokens)
        seen.append(tokens)
        assert cache.num_tokens <= bound
        for other in seen:
            stored(cache, *other)  # asserts that what is found is right
    if sum(map(len, kept)) <= bound:
        assert all(cache.match(tokens).length == len(tokens) for tokens in kept)
