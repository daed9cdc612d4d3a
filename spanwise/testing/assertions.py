"""Assertions that all checks share."""

from __future__ import annotations

import torch
from torch import Tensor


def require(holds: bool, message: str) -> None:
    """Raise ``AssertionError`` with the message unless ``holds``."""
    if not holds:
        raise AssertionError(message)


def require_close(got: Tensor, expected: Tensor, message: str, *, tolerance: float) -> None:
    """Raise ``AssertionError`` unless the two agree, NaN with NaN."""
    same = got.shape == expected.shape and torch.allclose(
        got.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
    if same:
        return
    if got.shape != expected.shape:
        raise AssertionError(f"{message}: {tuple(got.shape)} against {tuple(expected.shape)}")
    error = (got.double() - expected.double()).abs().nan_to_num(nan=torch.inf)
    worst = int(error.argmax())
    raise AssertionError(
        f"{message}: {got.reshape(-1)[worst].item():.6g} against "
        f"{expected.reshape(-1)[worst].item():.6g} at element {worst}"
    )
