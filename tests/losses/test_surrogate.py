"""The clipped surrogate: the four corners by hand, a loop, gradients, limits, metrics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise import spans
from spanwise.losses import clipped_surrogate, mean_by_sample, span_ratio, token_gradient_ratio

RATIOS = [span_ratio, token_gradient_ratio]
TOKENS = torch.arange(4)[None]


@st.composite
def batches(draw, constant=False):
    """Log-probs close enough that some ratios are clipped and some are not, in float64."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    old = normal() - 3
    mask = normal() < draw(st.sampled_from([0.2, 9.0]))
    partition = spans.by_probability(-normal().abs(), mask, threshold=0.5)
    advantages = spans.span_means(normal(), partition) if constant else normal()
    return old + 0.4 * normal(), old, advantages, partition


def test_the_four_corners_by_hand():
    # Ratios 2, 2, .5, .5; advantages +, -, +, -; range [.8, 1.3].
    #   2, +1: min(2, 1.3) = 1.3, clipped      2, -1: min(-2, -1.3) = -2, not clipped
    #  .5, +1: min(.5, .8) = .5, not clipped  .5, -1: min(-.5, -.8) = -.8, clipped
    x = torch.tensor([[2.0, 2.0, 0.5, 0.5]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    old = torch.zeros(1, 4, dtype=torch.float64)
    losses, metrics = clipped_surrogate(x, old, advantages, TOKENS, clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(losses, torch.tensor([[-1.3, 2.0, -0.5, 0.8]]).double())
    gradient = torch.autograd.grad(losses.sum(), x)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 2.0, -0.5, 0.0]]).double())
    expected = {
        "ratio_mean": 1.25,
        "ratio_min": 0.5,
        "ratio_max": 2.0,
        "clip_frac/token_low": 0.25,
        "clip_frac/token_high": 0.25,
        "clip_frac/span_low": 0.25,
        "clip_frac/span_high": 0.25,
        # k3 with r = trained / old: (2 - 1 - ln 2) and (.5 - 1 + ln 2), mean .25
        "approx_kl": 0.25,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_divergence_is_that_of_the_old_policy_from_the_trained_one():
    x, old = torch.tensor([[2.0]], dtype=torch.float64).log(), torch.zeros(1, 1).double()
    spans = torch.zeros(1, 1, dtype=torch.int64)
    _, metrics = clipped_surrogate(x, old, old, spans, clip_low=0.2, clip_high=0.3)
    assert metrics["approx_kl"].item() == pytest.approx(1 - math.log(2))


def test_dual_clip_bounds_the_loss_of_bad_tokens_alone():
    x = torch.tensor([[9.0, 9.0, 2.0, 0.5]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[-2.0, 2.0, -2.0, -2.0]], dtype=torch.float64)
    losses, _ = clipped_surrogate(
        x, torch.zeros_like(x), advantages, TOKENS, clip_low=0.2, clip_high=0.3, dual_clip=3.0
    )
    # -2 * 9 is bounded by -2 * 3; the good token and the ratios below 3 are as before.
    torch.testing.assert_close(losses, torch.tensor([[6.0, -2.6, 4.0, 1.6]]).double())
    gradient = torch.autograd.grad(losses.sum(), x)[0]
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 4.0, 0.0]]).double())


@pytest.mark.parametrize("ratio", RATIOS)
@given(batch=batches(), dual_clip=st.sampled_from([None, 1.3]), high=st.sampled_from([0.2, 3.0]))
def test_losses_and_shares_equal_the_loop(ratio, batch, dual_clip, high):
    logprobs, old, advantages, partition = batch
    low = 0.1
    losses, metrics = clipped_surrogate(
        *batch, clip_low=low, clip_high=high, ratio=ratio, dual_clip=dual_clip
    )
    num_tokens, num_spans = 0, 0
    cut = {"low": 0, "high": 0}
    cut_by_span = {"low": 0.0, "high": 0.0}
    for i in range(len(partition)):
        for k in range(int(partition[i].max()) + 1):
            tokens = [t for t in range(partition.shape[1]) if partition[i, t] == k]
            s = math.exp(sum(float(logprobs[i, t] - old[i, t]) for t in tokens) / len(tokens))
            num_spans += 1
            for t in tokens:
                a = float(advantages[i, t])
                expected = -min(s * a, min(max(s, 1 - low), 1 + high) * a)
                if dual_clip is not None and a < 0:
                    expected = min(expected, -dual_clip * a)
                assert losses[i, t].item() == pytest.approx(expected, abs=1e-12)
                num_tokens += 1
                for side, is_cut in (
                    ("low", s < 1 - low and a < 0),
                    ("high", s > 1 + high and a > 0),
                ):
                    cut[side] += is_cut
                    cut_by_span[side] += is_cut / len(tokens)
    assert (losses[partition < 0] == 0).all()
    for side in ("low", "high"):
        assert metrics[f"clip_frac/token_{side}"].item() == pytest.approx(
            cut[side] / max(1, num_tokens)
        )
        by_span = cut_by_span[side] / max(1, num_spans)
        assert metrics[f"clip_frac/span_{side}"].item() == pytest.approx(by_span)


def by_loop(clip, logprobs, old, advantages, partition, *, low, high, ratio):
    """CISPO and SAPO as their papers write them, one token at a time, through autograd."""
    losses = 0 * logprobs
    for i, t in (partition >= 0).nonzero().tolist():
        span = [j for j in range(partition.shape[1]) if partition[i, j] == partition[i, t]]
        mean = sum(logprobs[i, j] - old[i, j] for j in span) / len(span)
        own, a = logprobs[i, t], advantages[i, t]
        if clip == "detached":
            weight = min(max(math.exp(mean.item()), 1 - low), 1 + high)
            # The value is that of the token's own log-prob on either path of the gradient.
            path = own if ratio is token_gradient_ratio else mean + (own - mean).detach()
            losses[i, t] = -weight * a * path
        else:
            s = mean.exp()
            if ratio is token_gradient_ratio:
                s = s.detach() * (own - own.detach()).exp()
            tau = 1 / high if a > 0 else 1 / low
            losses[i, t] = -a * 4 / tau / (1 + (-tau * (s - 1)).exp())
    return losses


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    ("clip", "low", "high"),
    [
        *(("detached", 0.1, 0.2), ("detached", 1.0, 4.0), ("detached", 0.0, 0.0)),
        *(("soft", 1 / 1.05, 1.0), ("soft", 1 / 0.3, 0.1)),
    ],
)
@given(batch=batches())
def test_other_clips_have_the_losses_and_gradients_of_a_loop(ratio, clip, low, high, batch):
    found = []
    limits = {"clip_low": low, "clip_high": high}
    for function in (
        lambda *rows: clipped_surrogate(*rows, **limits, clip=clip, ratio=ratio)[0],
        lambda *rows: by_loop(clip, *rows, low=low, high=high, ratio=ratio),
    ):
        x = batch[0].clone().requires_grad_()
        losses = function(x, *batch[1:])
        weights = torch.arange(1.0, 1 + losses.numel()).view_as(losses)
        gradient = torch.autograd.grad((weights * losses).sum(), x)[0]
        found.append((losses.detach(), gradient))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@given(batch=batches())
def test_every_clip_has_the_same_metrics_and_tells_the_same_tokens_clipped(batch):
    metrics = [
        clipped_surrogate(*batch, clip_low=0.2, clip_high=0.3, clip=clip)[1]
        for clip in ("hard", "detached", "soft")
    ]
    assert metrics[0] == metrics[1] == metrics[2]


@pytest.mark.parametrize("clip", ["hard", "detached", "soft"])
def test_at_equal_log_probs_every_clip_has_the_policy_gradient(clip):
    x = torch.full((1, 4), -2.0, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -3.0, 0.0, 0.5]], dtype=torch.float64)
    losses, _ = clipped_surrogate(
        x, x.detach(), advantages, TOKENS, clip_low=0.2, clip_high=0.3, clip=clip
    )
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), x)[0], -advantages)


def test_a_detached_clip_cuts_no_gradient_however_far_the_ratio_is():
    x = torch.tensor([[100.0, 21.0, -19.0, -200.0]], requires_grad=True)
    losses, _ = clipped_surrogate(
        x, torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, 1.0]]), TOKENS,
        clip_low=0.2, clip_high=0.5, clip="detached",
    )  # fmt: skip
    gradient = torch.autograd.grad(losses.sum(), x)[0]
    # Below e^-20 it fades instead of being 0 / 0.
    torch.testing.assert_close(gradient, torch.tensor([[-1.5, 1.5, -0.8, 0.0]]))


@pytest.mark.parametrize("clip", ["detached", "soft"])
def test_nothing_at_masked_places_matters_to_other_clips(clip):
    mask = torch.tensor([[True, False, True, True]])
    rows = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for dirt in (0.0, math.nan, math.inf):
        x, old, advantages = (torch.where(mask, row, dirt) for row in rows)
        x.requires_grad_()
        losses, _ = clipped_surrogate(
            x, old, advantages, spans.by_turn(mask), clip_low=0.2, clip_high=0.2, clip=clip
        )
        found.append((losses.tolist(), torch.autograd.grad(losses.sum(), x)[0].tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("clips", [(0.1, 0.2), (1.0, 1e9)])
@given(batch=batches(constant=True))
def test_both_gradients_agree_when_advantages_are_constant_in_a_span(clips, batch):
    gradients = []
    for ratio in RATIOS:
        x = batch[0].clone().requires_grad_()
        losses, _ = clipped_surrogate(
            x, *batch[1:], clip_low=clips[0], clip_high=clips[1], ratio=ratio
        )
        # The sum over tokens: s A |k| / |k| for each token of the mean, s A for its own.
        gradients.append(torch.autograd.grad(losses.sum(), x)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_the_gradients_differ_when_advantages_are_not_constant():
    gradients = []
    for ratio in RATIOS:
        x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        losses, _ = clipped_surrogate(
            x,
            torch.zeros_like(x),
            torch.tensor([[3.0, 1.0]]),
            torch.tensor([[0, 0]]),
            clip_low=0.2,
            clip_high=0.2,
            ratio=ratio,
        )
        gradients.append(torch.autograd.grad(losses.sum(), x)[0].tolist())
    assert gradients == [[[-2.0, -2.0]], [[-3.0, -1.0]]]


def finite_differences(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for place in range(x.numel()):
        moved = torch.zeros_like(x)
        moved.view(-1)[place] = step
        gradient.view(-1)[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return gradient


@pytest.mark.parametrize("dual_clip", [None, 1.3])
@given(batch=batches())
def test_span_gradient_is_that_of_the_value(dual_clip, batch):
    def total(x):
        losses, _ = clipped_surrogate(
            x, *batch[1:], clip_low=0.1, clip_high=0.2, ratio=span_ratio, dual_clip=dual_clip
        )
        return losses.sum()

    x = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(gradient, finite_differences(total, batch[0]), rtol=0, atol=1e-6)


def test_at_the_old_policy_it_is_the_policy_gradient_of_a_small_action_set():
    """The expectation over three actions, enumerated: sum of pi * A * grad log pi."""
    logits = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    policy = logits.softmax(0)
    exact = torch.autograd.grad((policy * rewards).sum(), logits, retain_graph=True)[0]
    logprobs = logits.log_softmax(0)[:, None]  # one row of one token for every action
    losses, _ = clipped_surrogate(
        logprobs,
        logprobs.detach(),
        rewards[:, None],
        torch.zeros(3, 1, dtype=torch.int64),
        clip_low=3e-3,
        clip_high=4e-3,
    )
    expected_loss = (policy.detach() * losses[:, 0]).sum()
    torch.testing.assert_close(torch.autograd.grad(expected_loss, logits)[0], -exact)


@pytest.mark.parametrize("ratio", RATIOS)
def test_nothing_at_masked_places_matters(ratio):
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    partition = spans.by_turn(mask)
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 2, 4, generator=generator)

    def step(dirt):
        x = torch.where(mask, logprobs, dirt).requires_grad_()
        losses, metrics = clipped_surrogate(
            x,
            torch.where(mask, old, dirt),
            torch.where(mask, advantages, dirt),
            partition,
            clip_low=0.2,
            clip_high=0.2,
            ratio=ratio,
            dual_clip=3.0,
        )
        loss = mean_by_sample(losses, mask)
        return [losses, torch.autograd.grad(loss, x)[0], *metrics.values()]

    clean = step(0.0)
    for dirt in (math.nan, math.inf, -math.inf, 1e30):
        for a, b in zip(clean, step(dirt), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dirt", [math.nan, math.inf])
def test_a_ratio_of_ones_own_may_be_anything_at_masked_places(dirt):
    def ratio(logprobs, old_logprobs, spans):
        return torch.where(spans >= 0, (logprobs - old_logprobs).exp(), dirt)

    losses, metrics = clipped_surrogate(
        torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[0, -1, 1]]),
        clip_low=0.2, clip_high=0.2, ratio=ratio,
    )  # fmt: skip
    assert losses.tolist() == [[-1.0, 0.0, -1.0]]
    assert metrics["ratio_max"] == metrics["ratio_mean"] == 1


def test_without_model_tokens_the_loss_is_zero():
    x = torch.full((1, 3), torch.nan, requires_grad=True)
    losses, metrics = clipped_surrogate(
        x, x.detach(), x.detach(), torch.full((1, 3), -1), clip_low=0.2, clip_high=0.2
    )
    assert losses.tolist() == [[0.0] * 3]
    assert torch.autograd.grad(losses.sum(), x)[0].tolist() == [[0.0] * 3]
    # The neutral elements, so that micro-batches can be merged.
    assert metrics["ratio_min"] == math.inf and metrics["ratio_max"] == -math.inf
    assert metrics["ratio_mean"] == metrics["approx_kl"] == metrics["clip_frac/token_low"] == 0


def test_advantages_are_not_differentiated_through():
    advantages = torch.ones(1, 4, requires_grad=True)
    losses, _ = clipped_surrogate(
        torch.zeros(1, 4), torch.zeros(1, 4), advantages, TOKENS, clip_low=0.2, clip_high=0.2
    )
    assert not losses.requires_grad


X = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, X, X[:, :1], TOKENS), {}, r"advantages \(1, 1\)"),
        ((X, X, X, TOKENS >= 0), {}, "spans must be int64"),
        ((X, X, X, TOKENS), {"clip_low": 1.2}, "clip_low must lie in"),
        ((X, X, X, TOKENS), {"clip_high": -0.1}, "clip_high be at least 0"),
        ((X, X, X, TOKENS), {"dual_clip": 1.0}, "dual_clip must be above 1"),
        ((X, X, X, TOKENS), {"clip": "sharp"}, "clip is hard, detached or soft, got sharp"),
        ((X, X, X, TOKENS), {"clip": "soft", "clip_low": 0.0}, "soft clip must be above 0"),
        ((X, X, X, TOKENS), {"clip": "soft", "dual_clip": 3.0}, "leave dual_clip out"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        clipped_surrogate(*arguments, **{"clip_low": 0.2, "clip_high": 0.2} | options)
