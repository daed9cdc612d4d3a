"""``check_loss`` passes every form of the surrogate and fails each broken one."""

from functools import partial

import pytest
import torch

from spanwise.losses import clipped_surrogate, mean_by_token, span_ratio, token_gradient_ratio
from spanwise.spans import span_means
from spanwise.testing import check_loss


@pytest.mark.parametrize("ratio", [span_ratio, token_gradient_ratio])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_losses_of_the_library_pass(ratio, dual_clip):
    check_loss(
        partial(clipped_surrogate, clip_low=0.1, clip_high=0.2, ratio=ratio, dual_clip=dual_clip)
    )


@pytest.mark.parametrize("clip", ["detached", "soft"])
def test_the_other_clips_pass(clip):
    check_loss(partial(clipped_surrogate, clip_low=0.1, clip_high=0.2, clip=clip))


def ppo(logprobs, old, advantages, spans):
    """Correct: the plain token ratio, masked."""
    mask = spans >= 0
    ratios = torch.where(mask, logprobs - old.detach(), 0).exp()
    return -ratios * torch.where(mask, advantages.detach(), 0)


def test_a_loss_of_ones_own_passes():
    check_loss(ppo)


def unmasked(logprobs, old, advantages, spans):
    return -(logprobs - old.detach()).exp() * advantages.detach()


def masked_by_product(logprobs, old, advantages, spans):
    return unmasked(logprobs, old, advantages, spans) * (spans >= 0)


def masked_at_the_end(logprobs, old, advantages, spans):
    """0 * NaN goes back as a gradient, though the losses look right."""
    return torch.where(spans >= 0, unmasked(logprobs, old, advantages, spans), 0)


def averaged(logprobs, old, advantages, spans):
    return mean_by_token(ppo(logprobs, old, advantages, spans), spans >= 0)


def in_float32(logprobs, old, advantages, spans):
    return ppo(logprobs.float(), old.float(), advantages.float(), spans)


def ratio_upside_down(logprobs, old, advantages, spans):
    mask = spans >= 0
    ratios = torch.where(mask, old.detach() - logprobs, 0).exp()
    return -ratios * torch.where(mask, advantages.detach(), 0)


def a_token_late(logprobs, old, advantages, spans):
    return ppo(logprobs, old, torch.nn.functional.pad(advantages[:, :-1], (1, 0)), spans)


def per_batch_scale(logprobs, old, advantages, spans):
    losses = ppo(logprobs, old, advantages, spans)
    return losses / (spans >= 0).sum().clamp(min=1)


def whitened(logprobs, old, advantages, spans):
    of_model = advantages[spans >= 0]
    return ppo(logprobs, old, advantages - of_model.mean(), spans)


def by_place(logprobs, old, advantages, spans):
    return ppo(logprobs, old, advantages, spans) * (1 + torch.arange(spans.shape[1]) / 10)


def means_over_places(logprobs, old, advantages, spans):
    """A turn's mean divided by all places of the row."""
    mask = spans >= 0
    log_ratios = torch.where(mask, logprobs - old.detach(), 0)
    ratios = log_ratios.sum(1, keepdim=True) / mask.shape[1]
    return -(ratios + log_ratios - log_ratios.detach()).exp() * torch.where(
        mask, advantages.detach(), 0
    )


def attached_advantages(logprobs, old, advantages, spans):
    mask = spans >= 0
    ratios = torch.where(mask, logprobs - old.detach(), 0).exp()
    return -ratios * torch.where(mask, advantages, 0)


def wrong_sign(logprobs, old, advantages, spans):
    return -ppo(logprobs, old, advantages, spans)


def detached_ratio(logprobs, old, advantages, spans):
    return ppo(logprobs.detach(), old, advantages, spans)


def mean_of_ratios_gradient(logprobs, old, advantages, spans):
    """Each token's gradient divided by the length of its span."""
    mask = spans >= 0
    log_ratios = torch.where(mask, logprobs - old.detach(), 0)
    means = span_means(log_ratios, spans)
    kept = span_means(means - means.detach(), torch.where(mask, 0, -1)) + means.detach()
    return -kept.exp() * torch.where(mask, advantages.detach(), 0) * 0.5


def in_place(logprobs, old, advantages, spans):
    losses = ppo(logprobs, old, advantages, spans)
    with torch.no_grad():
        advantages[spans >= 0] *= 2
    return losses


def penalised(logprobs, old, advantages, spans):
    mask = spans >= 0
    return ppo(logprobs, old, advantages, spans) + torch.where(mask, logprobs, 0).square()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (unmasked, "masked places must have loss 0"),
        (masked_by_product, "masked places must have loss 0"),
        (masked_at_the_end, "no gradient|must not change losses or gradients"),
        (averaged, "losses are per token.*counts of the whole update"),
        (in_float32, "float64 in, torch.float32 out"),
        (ratio_upside_down, "minus the advantage"),
        (a_token_late, "masked places"),
        (per_batch_scale, "must not depend on other rows"),
        (whitened, "must not depend on other rows"),
        (by_place, "an observation must not change"),
        (means_over_places, "padding must not change"),
        (attached_advantages, "differentiated through old log-probs or advantages"),
        (wrong_sign, "minus the advantage"),
        (detached_ratio, "minus the advantage"),
        (mean_of_ratios_gradient, "minus the advantage"),
        (in_place, "must not change its arguments: advantages"),
        (penalised, "without advantage"),
        (lambda *_: [0.0], "is a tensor, got list"),
    ],
)
def test_broken_losses_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(broken)
