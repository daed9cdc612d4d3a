"""Partitions against loops written from their definitions, their limits and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise import spans

seeds = st.integers(0, 2**31)
masks = (
    st.integers(1, 12)
    .flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4
        )
    )
    .map(torch.tensor)
)


def random_logprobs(mask, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(mask.shape, generator=generator, dtype=torch.float64).log()


def loop_by_mark(marked, mask, side):
    """Number spans one token at a time; ``marked`` tokens open or close a span."""
    result = torch.full(mask.shape, -1)
    for i in range(mask.shape[0]):
        number, first, close_before = 0, True, False
        for t in range(mask.shape[1]):
            if not mask[i, t]:
                continue
            opens = marked[i, t] if side == "start" else close_before
            if opens and not first:
                number += 1
            first, close_before = False, bool(marked[i, t])
            result[i, t] = number
    return result


@settings(max_examples=60)
@given(masks, seeds, st.floats(0, 1), st.sampled_from(["start", "end"]))
def test_by_probability_is_the_loop(mask, seed, threshold, side):
    logprobs = random_logprobs(mask, seed)
    expected = loop_by_mark(logprobs.exp() < threshold, mask, side)
    got = spans.by_probability(logprobs, mask, threshold=threshold, side=side)
    assert torch.equal(got, expected)


@given(masks, seeds, st.sampled_from(["start", "end"]))
def test_by_probability_limits(mask, seed, side):
    logprobs = random_logprobs(mask, seed)
    logprobs[:, 0] = -math.inf  # even an impossible token is not below probability 0
    logprobs[:, -1] = 0.0  # and even a certain one is below 1.5
    assert torch.equal(
        spans.by_probability(logprobs, mask, threshold=0.0, side=side), spans.whole(mask)
    )
    assert torch.equal(
        spans.by_probability(logprobs, mask, threshold=1.5, side=side),
        spans.by_token(mask),
    )


def test_by_probability_hand_worked():
    #            a    b    (env)  c    d    e
    # p          .9   .1   .01    .5   .15  .6     below .2: b, d (and the masked token)
    logprobs = torch.tensor([[0.9, 0.1, 0.01, 0.5, 0.15, 0.6]]).log()
    mask = torch.tensor([[True, True, False, True, True, True]])
    # start: a | b c | d e, the span b c goes on across the observation
    assert spans.by_probability(logprobs, mask).tolist() == [[0, 1, -1, 1, 2, 2]]
    # end: a b | c d | e
    assert spans.by_probability(logprobs, mask, side="end").tolist() == [[0, 0, -1, 1, 1, 2]]


def test_probability_equal_to_the_threshold_is_not_below_it():
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.full((1, 2), math.log(0.2), dtype=torch.float64)
    assert spans.by_probability(logprobs, mask, threshold=0.2).tolist() == [[0, 0]]
    assert spans.by_probability(logprobs - 1e-12, mask, threshold=0.2).tolist() == [[0, 1]]


@given(masks, seeds)
def test_scores_at_masked_tokens_change_nothing(mask, seed):
    logprobs = random_logprobs(mask, seed)
    garbage = torch.where(mask, logprobs, torch.nan)
    for partition in (
        lambda x: spans.by_probability(x, mask, threshold=0.5),
        lambda x: spans.by_probability(x, mask, threshold=0.5, side="end"),
        lambda x: spans.by_mean_length(x, mask, mean_length=2),
        lambda x: spans.by_mean_length(x, mask, mean_length=2, side="end"),
        lambda x: spans.by_entropy(x, mask, quantile=0.5),
    ):
        assert torch.equal(partition(logprobs), partition(garbage))


@given(masks, seeds, st.integers(1, 3))
def test_a_longer_observation_changes_no_span(mask, seed, extra):
    logprobs = random_logprobs(mask, seed)
    cut = mask.shape[1] // 2
    room = torch.zeros(len(mask), extra, dtype=torch.bool)
    wide_mask = torch.cat([mask[:, :cut], room, mask[:, cut:]], 1)
    wide = torch.cat([logprobs[:, :cut], room.double() - 50, logprobs[:, cut:]], 1)
    for partition in (
        lambda x, m: spans.by_token(m),
        lambda x, m: spans.whole(m),
        lambda x, m: spans.fixed_length(m, 2),
        lambda x, m: spans.by_probability(x, m, threshold=0.5),
        lambda x, m: spans.by_probability(x, m, threshold=0.5, side="end"),
        lambda x, m: spans.by_mean_length(x, m, mean_length=1.7),
        lambda x, m: spans.by_entropy(-x, m, quantile=0.5),
        lambda x, m: spans.by_delimiter((x > -0.7).long(), m, delimiters=[1]),
    ):
        wide_spans = partition(wide, wide_mask)
        kept = torch.cat([wide_spans[:, :cut], wide_spans[:, cut + extra :]], 1)
        assert torch.equal(kept, partition(logprobs, mask))
        assert (wide_spans[:, cut : cut + extra] == -1).all()


@given(masks, seeds)
def test_rows_do_not_see_each_other(mask, seed):
    logprobs = random_logprobs(mask, seed)
    for partition in (
        lambda x, m: spans.by_turn(m),
        lambda x, m: spans.fixed_length(m, 3),
        lambda x, m: spans.by_probability(x, m, threshold=0.4),
        lambda x, m: spans.by_delimiter((x > -0.7).long(), m, delimiters={1}),
    ):
        alone = [partition(logprobs[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
        assert torch.equal(partition(logprobs, mask), torch.cat(alone))


@given(masks)
def test_by_turn_is_the_loop(mask):
    expected = torch.full(mask.shape, -1)
    for i, row in enumerate(mask.tolist()):
        turn, inside = -1, False
        for t, sampled in enumerate(row):
            turn += sampled and not inside
            inside = sampled
            expected[i, t] = turn if sampled else -1
    assert torch.equal(spans.by_turn(mask), expected)


@given(masks, st.integers(1, 5))
def test_fixed_length_counts_model_tokens(mask, length):
    result = spans.fixed_length(mask, length)
    for i, row in enumerate(mask):
        assert result[i][row].tolist() == [k // length for k in range(int(row.sum()))]
    assert torch.equal(spans.fixed_length(mask, 1), spans.by_token(mask))
    assert torch.equal(spans.fixed_length(mask, mask.shape[1]), spans.whole(mask))


@given(masks, seeds, st.floats(1, 20), st.sampled_from(["start", "end"]))
def test_by_mean_length_hits_the_mean(mask, seed, mean_length, side):
    logprobs = random_logprobs(mask, seed)  # distinct, so there are no ties
    result = spans.by_mean_length(logprobs, mask, mean_length=mean_length, side=side)
    num_tokens, num_rows = int(mask.sum()), int(mask.any(1).sum())
    wanted = max(round(num_tokens / mean_length), num_rows)
    assert spans.span_statistics(result)["num_spans"] == wanted
    assert torch.equal(
        spans.by_mean_length(logprobs, mask, mean_length=1, side=side),
        spans.by_token(mask),
    )
    assert torch.equal(
        spans.by_mean_length(logprobs, mask, mean_length=math.inf, side=side),
        spans.whole(mask),
    )


def test_by_mean_length_takes_the_least_likely_tokens_of_the_batch():
    logprobs = torch.tensor([[0.01, 0.9, 0.3, 0.8], [0.5, 0.2, 0.1, 0.95]]).log()
    mask = torch.ones(2, 4, dtype=torch.bool)
    # 8 tokens / 2 = 4 spans = 2 rows + the 2 least likely tokens that do not open a row: .1, .2
    assert spans.by_mean_length(logprobs, mask, mean_length=2).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 2, 2],
    ]
    # Ties are never told apart: asked for one boundary of two equal tokens, it makes none.
    tied = torch.tensor([[0.9, 0.3, 0.3]]).log()
    assert spans.by_mean_length(tied, mask[:1, :3], mean_length=1.5).tolist() == [[0, 0, 0]]


def test_a_quantile_that_meets_a_token_is_that_token():
    # 0.07 * 100 is a little above 7 in floating point: the 7th least, 6.0, not the 8th.
    entropies = torch.arange(100.0)[None]
    found = spans.by_entropy(entropies, torch.ones(1, 100, dtype=torch.bool), quantile=0.07)
    assert found[0, :9].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 2]


def test_by_entropy_opens_at_the_upper_quantile():
    entropies = torch.tensor([[9.0, 1.0, 7.0, 3.0], [2.0, 4.0, 8.0, 5.0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    # quantile .75 of 1 2 3 4 5 7 8 9 is 7: above it are 8 and 9 (which opens its row anyway)
    assert spans.by_entropy(entropies, mask, quantile=0.75).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
    ]
    assert torch.equal(spans.by_entropy(entropies, mask, quantile=1), spans.whole(mask))


@given(masks, seeds)
def test_by_delimiter_is_the_loop(mask, seed):
    tokens = torch.randint(0, 4, mask.shape, generator=torch.Generator().manual_seed(seed))
    expected = loop_by_mark((tokens == 1) | (tokens == 3), mask, "end")
    assert torch.equal(spans.by_delimiter(tokens, mask, delimiters={1, 3}), expected)
    assert torch.equal(spans.by_delimiter(tokens, mask, delimiters=[]), spans.whole(mask))


@given(masks, seeds)
def test_means_and_lengths_are_those_of_a_loop(mask, seed):
    partition = spans.by_probability(random_logprobs(mask, seed), mask, threshold=0.4)
    x = random_logprobs(mask, seed + 2)
    means = spans.span_means(torch.where(mask, x, torch.nan), partition)
    lengths = spans.span_lengths(partition)
    for i in range(len(mask)):
        for t in range(mask.shape[1]):
            same = (partition[i] == partition[i, t]) & mask[i]
            if mask[i, t]:
                assert means[i, t].item() == pytest.approx(x[i][same].mean().item(), abs=1e-12)
                assert lengths[i, t] == same.sum()
            else:
                assert means[i, t] == 0 and lengths[i, t] == 0


def test_span_statistics_by_hand():
    # Spans of 1, 1, 2, 4 (first row) and 2 tokens: 5 spans, 10 tokens, mean 2.
    partition = torch.tensor([[0, -1, 1, 2, 2, 3, -1, 3, 3, 3], [0, -1, 0, -1, -1, -1] + [-1] * 4])
    assert spans.span_statistics(partition) == {
        "num_spans": 5.0,
        "span_length_mean": 2.0,
        "span_length_p10": 1.0,  # lengths in order: 1 1 2 2 4; ranks 1, 3 and 5
        "span_length_p50": 2.0,
        "span_length_p90": 4.0,
        "span_open_share": 0.5,
    }


def test_a_batch_without_model_tokens_has_no_spans():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    x = torch.full((2, 3), torch.nan)
    for partition in (
        spans.by_token(mask),
        spans.by_turn(mask),
        spans.whole(mask),
        spans.by_probability(x, mask),
        spans.by_mean_length(x, mask, mean_length=2),
        spans.by_entropy(x, mask, quantile=0.5),
    ):
        assert (partition == -1).all() and partition.dtype == torch.int64
        assert set(spans.span_statistics(partition).values()) == {0.0}


MASK = torch.ones(1, 2, dtype=torch.bool)
X = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spans.by_token(MASK.long()), "mask must be bool"),
        (lambda: spans.by_turn(MASK[0]), r"mask must be bool \[N, T\]"),
        (lambda: spans.fixed_length(MASK, 0), "length=0"),
        (lambda: spans.by_probability(X, MASK, threshold=-0.1), "threshold"),
        (lambda: spans.by_probability(X, MASK, threshold=math.nan), "threshold"),
        (lambda: spans.by_probability(X / 0, MASK), "logprobs is NaN"),
        (lambda: spans.by_probability(X[:, :1], MASK), r"logprobs \(1, 1\), mask \(1, 2\)"),
        (lambda: spans.by_probability(X, MASK, side="middle"), '"start" or "end"'),
        (lambda: spans.by_mean_length(X, MASK, mean_length=0.5), "mean_length=0.5"),
        (lambda: spans.by_entropy(X, MASK, quantile=1.5), "quantile"),
        (lambda: spans.mask_of(MASK), "spans must be int64"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(masks, seeds)
def test_the_gradient_of_means_is_that_of_their_values(mask, seed):
    """Once and twice differentiated: the map is linear, and its own transpose."""
    partition = spans.by_probability(random_logprobs(mask, seed), mask, threshold=0.4)
    x, y = torch.randn(2, *mask.shape, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(
        (y * spans.span_means(x, partition)).sum(), x, create_graph=True
    )
    torch.testing.assert_close(gradient, spans.span_means(y, partition))
    (twice,) = torch.autograd.grad((x.detach() * gradient).sum(), y)
    torch.testing.assert_close(twice, spans.span_means(x.detach(), partition))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_have_the_dtype_of_their_numbers_and_are_summed_in_more(dtype):
    # 4,096 numbers of 1 and one of 3: a sum in half precision would stop at 2,048 or 256.
    x = torch.ones(1, 4097, dtype=dtype)
    x[0, 0] = 3
    means = spans.span_means(x, torch.zeros(1, 4097, dtype=torch.int64))
    assert means.dtype == dtype
    assert torch.equal(means, torch.full_like(x, 4099 / 4097))
