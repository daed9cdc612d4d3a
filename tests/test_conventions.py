"""The page of conventions is what its script writes, and its numbers are the published ones."""

import random
from typing import Any

import pytest

from bench.conventions import (
    PAGE,
    carried_over,
    equation_6,
    equation_9,
    example_row,
    mask_ignored,
    ours,
    over_segments,
    over_turns,
    page,
    turn_as_step,
    values_zeroed,
)


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ours, [0.4287, 0.4512, 0.475, 0.5]),
        (carried_over, [0.4287, 0.4512, 0.475, 0.5]),
        (mask_ignored, [0.4217, 0.4439, 0.475, 0.5]),
        (values_zeroed, [0.2998, 0.3156, 0.475, 0.5]),
    ],
)
def test_the_conventions_give_the_published_numbers(rule, expected):
    # mask_ignored: deltas 0, .4, 0, 0, -.4, 0, .5 from token 1 to 7; A_5 = -.4 + .95 * .475 =
    # .05125, A_3 = .95^2 * .05125 = .04625, A_2 = .4 + .95 * .04625 = .4439.
    assert rule(*example_row(3, 0.9)) == pytest.approx(expected, abs=6e-5)


ROW = ([True, True, False, True, True], [0.0, 0, 0, 0, 1], [0.5, 0.4, 0.9, 0.6, 0.9])


@pytest.mark.parametrize(
    ("rule", "gamma", "advantages", "returns"),
    [
        # Second turn: 1 - 0.6; first: 0.6 - 0.5 + 0.95 * 0.4.
        (turn_as_step, 1.0, [0.48, 0.48, 0.4, 0.4], [0.98, 0.98, 1, 1]),
        # 1 - 0.9; 0.9 - 0.6 + 0.1; 0.6 - 0.4 + 0.95 * 0.4; 0.4 - 0.5 + 0.58.
        (over_turns, 1.0, [0.48, 0.58, 0.4, 0.1], [0.98, 0.98, 1, 1]),
        # 0.9 * 0.6 - 0.5 + 0.9 * 0.95 * 0.4
        (turn_as_step, 0.9, [0.382, 0.382, 0.4, 0.4], [0.882, 0.882, 1, 1]),
        # 0.81 - 0.6 + 0.09; 0.54 - 0.4 + 0.855 * 0.3; 0.36 - 0.5 + 0.9 * 0.3965
        (over_turns, 0.9, [0.21685, 0.3965, 0.3, 0.1], [0.71685, 0.7965, 0.9, 1]),
    ],
)
def test_a_turn_as_one_step_and_ours_by_hand(
    rule: Any, gamma: float, advantages: list[float], returns: list[float]
) -> None:
    found = rule(*ROW, gamma)
    assert found[0] == pytest.approx(advantages) and found[1] == pytest.approx(returns)


def test_a_turn_as_one_step_is_ours_at_the_first_token_of_each_turn() -> None:
    draw = random.Random(0)
    for _ in range(100):
        mask = [draw.random() < 0.6 for _ in range(12)] + [True]
        values = [draw.random() for _ in mask]
        rewards = [draw.random() * sampled for sampled in mask]
        firsts = [t and not before for t, before in zip(mask, [False, *mask[:-1]], strict=True)]
        at = [first for first, sampled in zip(firsts, mask, strict=True) if sampled]
        theirs, own = (f(mask, rewards, values, 1.0) for f in (turn_as_step, over_turns))
        for one, other in zip(theirs, own, strict=True):
            pairs = zip(one, other, at, strict=True)
            assert all(a == pytest.approx(b) for a, b, first in pairs if first)


def test_each_side_is_its_reading_of_the_equations() -> None:
    draw = random.Random(0)
    differs = 0
    for _ in range(200):
        length = draw.randint(1, 8)
        probabilities = [draw.choice((0.05, 0.15, 0.5, 0.9)) for _ in range(length)]
        example = (
            probabilities,
            [draw.random() for _ in range(length)],
            float(draw.random() < 0.5),
        )
        assert over_segments(*example, "start") == pytest.approx(equation_9(*example))
        assert over_segments(*example, "end") == pytest.approx(equation_6(*example))
        differs += equation_9(*example) != pytest.approx(equation_6(*example))
    assert differs > 100
    # By hand: boundary before the third token; after it.
    four = ((0.9, 0.8, 0.1, 0.7), (0.5, 0.4, 0.6, 0.9), 1.0)
    assert equation_9(*four) == pytest.approx([-0.1 + 0.58, 0.2 + 0.95 * 0.4, 0.3 + 0.1, 0.1])
    assert equation_6(*four) == pytest.approx(
        [0.05 * (0.9 - v) + 0.95 * (1 - v) for v in (0.5, 0.4, 0.6)] + [0.1]
    )
