"""The page of conventions is what its script writes, and its numbers are the published ones."""

import pytest

from bench.conventions import (
    PAGE,
    carried_over,
    example_row,
    mask_ignored,
    ours,
    page,
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
