"""The properties of a policy loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from spanwise import spans
from spanwise.testing.assertions import require, require_close

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], "Tensor | tuple[Tensor, object]"]
"""``(logprobs, old_logprobs, advantages, spans)``, all ``[N, T]``, to losses ``[N, T]``."""

TOLERANCE = 1e-9
"""Relative and absolute, in float64."""

SEEDS = range(5)


def check_loss(loss: Loss) -> None:
    """Check a policy loss: losses per token from log-probs, advantages and spans.

    - losses are float64 ``[N, T]``, finite, and 0 without gradient at masked places, whatever
      stands there, NaN included; an empty row and a row of one token are no exception;
    - a row's losses depend on that row alone, so that any split into micro-batches gives the
      same sum; neither padding nor observations inside a row change them;
    - old log-probs and advantages are not differentiated through, and no argument is
      changed; where advantages are 0 there is no loss and no gradient;
    - at the old policy the gradient of the loss with respect to a token's log-prob is minus
      its advantage, and the expected gradient that of the expected reward, enumerated over
      the actions of a small policy.

    Penalties (KL, entropy) are no part of it: add them after the check.

    Args:
      loss: Called with float64 ``logprobs``, ``old_logprobs`` and ``advantages``, and int64
        span numbers, -1 where masked. It may return metrics beside the losses.

    Raises:
      AssertionError: one line that says which property does not hold.

    Example:
      >>> from functools import partial
      >>> from spanwise.losses import clipped_surrogate
      >>> check_loss(partial(clipped_surrogate, clip_low=0.2, clip_high=0.2))
      >>> check_loss(lambda logp, old, advantages, spans: -logp * advantages)
      Traceback (most recent call last):
      AssertionError: a loss must not be differentiated through old log-probs or advantages
    """
    for seed in SEEDS:
        old, advantages, mask, noise = _example(seed)
        for partition in (spans.by_token(mask), spans.by_turn(mask), spans.whole(mask)):
            _check_arguments(loss, old + noise, old, advantages, partition)
            _check_masking(loss, old + noise, old, advantages, partition)
            _check_rows_and_places(loss, old + noise, old, advantages, partition)
            _check_old_policy(loss, old, advantages, partition)
    _check_enumerated(loss)


def _example(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old log-probs, advantages, mask and what the log-probs moved by; ``[4, 9]``."""
    generator = torch.Generator().manual_seed(seed)
    old, advantages, noise = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.7
    mask[1] = False
    mask[2] = torch.arange(9) == 4
    return old - 3, advantages, mask, 0.3 * noise


def _losses(loss: Loss, *arguments: Tensor) -> Tensor:
    returned = loss(*cast("tuple[Tensor, Tensor, Tensor, Tensor]", arguments))
    return returned[0] if isinstance(returned, tuple) else returned


def _losses_and_gradient(
    loss: Loss, logprobs: Tensor, old: Tensor, advantages: Tensor, partition: Tensor
) -> tuple[Tensor, Tensor]:
    x = logprobs.detach().clone().requires_grad_()
    losses = _losses(loss, x, old, advantages, partition)
    require(
        losses.shape == x.shape,
        f"losses are per token, [N, T] = {tuple(x.shape)}, got {tuple(losses.shape)}: leave the "
        "mean to losses.mean_by_token and its like, which divide by counts of the whole update",
    )
    require(
        losses.dtype == x.dtype,
        f"losses must keep the precision of their arguments: float64 in, {losses.dtype} out",
    )
    if not losses.requires_grad:
        return losses, torch.zeros_like(x)
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def _check_masking(
    loss: Loss, logprobs: Tensor, old: Tensor, advantages: Tensor, partition: Tensor
) -> None:
    mask = partition >= 0
    clean = _losses_and_gradient(loss, logprobs, old, advantages, partition)
    for found in clean:
        require(bool(found[mask].isfinite().all()), "losses and gradients must be finite")
    for dirt in (torch.nan, torch.inf, 7.0):
        new, before, credit = (torch.where(mask, x, dirt) for x in (logprobs, old, advantages))
        losses, gradient = _losses_and_gradient(loss, new, before, credit, partition)
        require(
            not bool(losses[~mask].any()), "masked places must have loss 0, whatever stands there"
        )
        require(not bool(gradient[~mask].any()), "masked places must have no gradient")
        for found, expected in zip((losses, gradient), clean, strict=True):
            require_close(
                found[mask],
                expected[mask],
                "what stands at masked places must not change losses or gradients",
                tolerance=TOLERANCE,
            )


def _check_rows_and_places(
    loss: Loss, logprobs: Tensor, old: Tensor, advantages: Tensor, partition: Tensor
) -> None:
    together = _losses_and_gradient(loss, logprobs, old, advantages, partition)
    for i in range(len(partition)):
        row = slice(i, i + 1)
        alone = _losses_and_gradient(loss, logprobs[row], old[row], advantages[row], partition[row])
        for found, expected in zip(alone, together, strict=True):
            require_close(
                found,
                expected[row],
                "a row must not depend on other rows, as where losses are divided by a count or a "
                "norm of the batch at hand",
                tolerance=TOLERANCE,
            )
    for columns, name in ((slice(9, 9), "padding"), (slice(4, 4), "an observation")):

        def wider(x: Tensor, fill: float, at: slice = columns) -> Tensor:
            room = torch.full((len(x), 2), fill, dtype=x.dtype)
            return torch.cat([x[:, : at.start], room, x[:, at.stop :]], 1)

        new, before, credit = (wider(x, 0.5) for x in (logprobs, old, advantages))
        kept = torch.ones(11, dtype=torch.bool)
        kept[columns.start : columns.start + 2] = False
        wide = _losses_and_gradient(loss, new, before, credit, wider(partition, -1))
        for found, expected in zip(wide, together, strict=True):
            require_close(
                found[:, kept],
                expected,
                f"{name} must not change losses or gradients",
                tolerance=TOLERANCE,
            )


def _check_arguments(
    loss: Loss, logprobs: Tensor, old: Tensor, advantages: Tensor, partition: Tensor
) -> None:
    given = (
        logprobs.clone(),
        old.clone().requires_grad_(),
        advantages.clone().requires_grad_(),
        partition.clone(),
    )
    losses = _losses(loss, *given)
    require(isinstance(losses, Tensor), f"a loss is a tensor, got {type(losses).__name__}")
    require(
        not losses.requires_grad,
        "a loss must not be differentiated through old log-probs or advantages",
    )
    for name, now, before in zip(
        ("logprobs", "old_logprobs", "advantages", "spans"),
        given,
        (logprobs, old, advantages, partition),
        strict=True,
    ):
        require(torch.equal(now, before), f"a loss must not change its arguments: {name}")
    for figure in _losses_and_gradient(loss, logprobs, old, 0 * advantages, partition):
        require(
            not bool(figure[partition >= 0].any()),
            "without advantage there must be no loss and no gradient",
        )


def _check_old_policy(loss: Loss, old: Tensor, advantages: Tensor, partition: Tensor) -> None:
    """With advantages alike in each span: there every form of the ratio agrees."""
    alike = spans.span_means(advantages, partition)
    _, gradient = _losses_and_gradient(loss, old, old, alike, partition)
    require_close(
        gradient,
        -alike,
        "at the old policy the gradient with respect to a log-prob must be minus the advantage",
        tolerance=TOLERANCE,
    )


def _check_enumerated(loss: Loss) -> None:
    """Every action of a small policy once, weighted by its probability."""
    logits = torch.tensor([0.4, -0.7, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, -0.5, 2.0], dtype=torch.float64)
    exact = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    logprobs = logits.log_softmax(0)[:, None]
    partition = torch.zeros_like(logprobs).long()
    losses = _losses(loss, logprobs, logprobs.detach(), rewards[:, None], partition)
    expected_loss = (logits.softmax(0).detach() * losses[:, 0]).sum()
    require_close(
        torch.autograd.grad(expected_loss, logits)[0],
        -exact,
        "the expected gradient must be that of the expected reward",
        tolerance=TOLERANCE,
    )
