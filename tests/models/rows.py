"""Rows that share tokens, and when two sets of tensors are the same."""

from __future__ import annotations

import torch
from torch import Tensor

Rows = tuple[Tensor, Tensor, Tensor]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def random_rows(seed: int, *, depth: int, branching: int = 3, vocab: int = 64) -> Rows:
    """The branches of a random tree of turns: tokens, mask, lengths; some rows stand twice."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    def grow(path: list[tuple[int, bool]], level: int) -> list[list[tuple[int, bool]]]:
        if level == depth or (level > 1 and number(0, 3) == 0):
            return [path]
        found = []
        for _ in range(number(1, branching)):
            turn = [(number(0, vocab - 1), True) for _ in range(number(1, 5))]
            given_ = [(number(0, vocab - 1), False) for _ in range(number(0, 4))]
            found += grow(path + turn + given_, level + 1)
        return found

    branches = grow([(number(0, vocab - 1), False) for _ in range(number(1, 6))], 0)[:12]
    if number(0, 1):
        branches.append(branches[0])
    width = max(len(b) for b in branches)
    tokens = torch.tensor([[t for t, _ in b] + [0] * (width - len(b)) for b in branches])
    mask = torch.tensor([[m for _, m in b] + [False] * (width - len(b)) for b in branches])
    return tokens, mask, torch.tensor([len(b) for b in branches])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Within a share of the largest figure of each tensor.

    One rounding of the largest figure of all is let pass: the gradient of a query that sees
    a single key is 0, and comes out as what is left of terms that cancel.
    """
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    rounding = torch.finfo(next(iter(expected.values())).dtype).eps * largest
    for name, tensor in expected.items():
        error = float((found[name] - tensor).abs().max())
        assert error <= relative * float(tensor.abs().max()) + rounding, (name, error)
