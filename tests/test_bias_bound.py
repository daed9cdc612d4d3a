"""The figure of Theorem 4.1: bound and bias in closed form, and the page and picture show them."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bench.bias_bound import PICTURE, biases, bound, errors, exact_values, picture
from bench.record import RESULTS
from spanwise.batch import Batch
from tests.trees import of_probabilities

RESULT: dict[str, Any] = json.loads((RESULTS / "bias_bound.json").read_text(encoding="utf-8"))
COLUMNS = ("bound", "opposed", "alike", "deviation")


def error(t: int) -> float:
    return RESULT["alpha"] * math.exp((RESULT["horizon"] - t) / RESULT["beta"])


def by_boundaries(num_tokens: int, length: int, lam: float, sign: int) -> float:
    """Eq. 6 of the errors alone: at each boundary after the prompt, less that of the prompt."""
    inner = range(length, num_tokens, length)
    return sum((1 - lam) * lam**k * error(t) for k, t in enumerate(inner)) - sign * error(0)


@pytest.mark.parametrize("row", RESULT["rows"], ids=lambda row: f"M={row['length']}")
def test_the_figures_are_those_of_the_closed_forms(row: dict[str, float]) -> None:
    lam, length = RESULT["lam"], int(row["length"])
    # The sum over infinitely many boundaries, by the terms; far more than 10,000 are not needed.
    tail = sum((1 - lam) * lam ** (k - 1) * error(k * length) for k in range(1, 10_000))
    assert row["bound"] == pytest.approx(error(0) + tail, abs=1e-6)
    num_rows = sum(RESULT["token_counts"].values())
    for name, sign in (("opposed", -1), ("alike", 1)):
        total = sum(
            count * by_boundaries(int(num_tokens), length, lam, sign)
            for num_tokens, count in RESULT["token_counts"].items()
        )
        assert row[name] == pytest.approx(abs(total / num_rows), abs=1e-6)
        assert row[name] <= row["bound"]


def test_the_bias_falls_to_a_floor_and_not_as_one_over_the_length() -> None:
    bounds, opposed, alike = ([row[name] for row in RESULT["rows"]] for name in COLUMNS[:3])
    for falling in (bounds, opposed):
        assert falling == sorted(falling, reverse=True) and falling[-1] > falling[0] / 2
    assert alike == sorted(alike)
    assert bounds[-1] == pytest.approx(error(0), rel=3e-3) and error(0) < bounds[-1]


def test_values_and_biases_by_hand() -> None:
    # Prefix of all: 0.5. The second token of both rows is the same, the third is not.
    rows = [((0.5,) * 3, 1.0, "end"), ((0.5,) * 3, 0.0, "end")]
    batch = Batch.from_trees([of_probabilities(*rows)])  # pyright: ignore[reportArgumentType]
    tokens = torch.tensor([[50, 51, 1, 2, 3], [50, 51, 1, 4, 3]])
    batch.tokens.copy_(tokens)
    values = exact_values(batch)
    assert values[batch.mask].tolist() == [0.5, 0.5, 1.0, 0.5, 0.5, 0.0]
    # errors 0.1 e^((3 - t) / 2), the first of the other sign
    of_tokens = errors(batch.mask, 3, "opposed", alpha=0.1, beta=2.0)
    e = [0.1 * math.exp((3 - t) / 2) for t in range(3)]
    assert of_tokens[0, 2:].tolist() == pytest.approx([-e[0], e[1], e[2]])
    # M = 2: one boundary, before the third token, then the outcome
    found = biases(batch, values, of_tokens, 2, 0.75)
    expected = [0.25 * (v + e[2]) + 0.75 * r - (0.5 - e[0]) for v, r in ((1.0, 1.0), (0.0, 0.0))]
    assert found.tolist() == pytest.approx(expected)
    assert found.mean().item() == pytest.approx(0.25 * e[2] + e[0])
    assert bound(8, 44, alpha=0.03, beta=20, lam=0.95) == pytest.approx(0.29574, abs=1e-5)


def test_page_and_picture_show_the_results() -> None:
    page = (PICTURE.parent.parent / "critic.md").read_text(encoding="utf-8")
    for row in RESULT["rows"]:
        cells = " | ".join(f"{row[name]:.3f}" for name in COLUMNS)
        assert f"| {row['length']} | {cells} |" in page
    for name in ("alpha", "beta", "horizon", "prompts", "rollouts", "lam"):
        assert f"{RESULT[name]:g}" in page
    assert PICTURE.read_text(encoding="utf-8") == picture(RESULT)
    ElementTree.fromstring(picture(RESULT))
