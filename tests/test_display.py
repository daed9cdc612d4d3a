from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from spanwise.display import (
    Display,
    TextConsole,
    results_table,
    scores_table,
    show_results,
    step_figures,
    tree_to_show,
    tree_view,
)
from spanwise.errors import printable
from spanwise.run.folder import RunFolder, tree_record
from tests.trees import RECORDED, grown, root, turn


def shown(renderable: object) -> str:
    console = TextConsole(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_tree_is_shown_with_its_credit_and_why_a_turn_was_forked() -> None:
    record = tree_record(
        RECORDED,
        {"question": "who ?", "answers": ("Bo Lin",)},
        advantages=[0.0, 0.5, 0.0, -1.25],
        values=[0.0, 0.5, 0.0, -1.25],
    )
    text = shown(tree_view(record))
    assert "who ?" in text and "Bo Lin" in text
    call = next(line for line in text.splitlines() if "search q" in line)
    assert "H 0.30" in call and "V +0.50" in call and "A +0.50" in call  # (0.1 + 0.5) / 2
    fork = next(line for line in text.splitlines() if "+r1" in line)
    assert (
        "0.1 " in fork and "beside 0.0 (0.25)" in fork and "reward 1" in fork and "A -1.25" in fork
    )
    assert "engine" not in call and "failure (m)" in text


def test_credit_stands_out_in_colour_beside_what_is_dim() -> None:
    record = tree_record(
        RECORDED, {"question": "?", "answers": ("a",)}, advantages=[0, 0.5, 0, -1.25]
    )
    console = TextConsole(
        file=io.StringIO(), width=200, force_terminal=True, color_system="standard"
    )
    console.print(tree_view(record))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32m  A +0.50" in text and "\x1b[31m  A -1.25" in text and "\x1b[2mH " in text


def test_model_text_is_text() -> None:
    assert printable("[red]x[/red]\x1b]0;title\x07\u202e\nnext") == "[red]x[/red]]0;title next"
    record = tree_record(RECORDED, {"question": "[bold]?", "answers": ("a",)}, advantages=[0.0] * 4)
    assert "[bold]?" in shown(tree_view(record))


def test_the_tree_whose_branches_end_most_differently_is_shown() -> None:
    def record(*ends: float | bool) -> dict[str, object]:
        nodes = [root()]
        for i, end in enumerate(ends):
            success = end if isinstance(end, bool) else None
            nodes.append(turn(i, stop="continue", reward=float(end)))
            nodes.append(turn(i, 0, success=success))
        return tree_record(grown(*nodes), {"question": "?"}, advantages=[0.0] * len(nodes))

    records = [record(True, True, True), record(True, False), record(True, False, False, False)]
    assert tree_to_show(records) is records[1]
    games = [record(5.0, 5.0), record(5.0, 4.0), record(5.0, -5.0, 5.0)]
    assert tree_to_show(games) is games[2]


def measured(share: float, **more: object) -> dict[str, object]:
    scores = {"score": share - 1, "greedy_score": share / 2}
    group = {"n": 4, **scores, **more}
    return {**group, "n": 8, "failed": 3, "by_group": {"1": group, "2": {"n": 4}}}


def test_results_before_and_after() -> None:
    before = measured(0.25, success=0.25, greedy_success=0.125)
    after = measured(0.75, success=0.75, greedy_success=0.375)
    summary = {"recipe": "demo", "seed": 3, "before": before, "after": after}
    text = shown(results_table(summary, group_by="length"))
    assert "Held-out success, demo, seed 3" in text and "│ length │" in text.replace("┃", "│")
    assert "6 trajectories failed and count as no success" in text
    row = next(line for line in text.splitlines() if " all " in line)
    for cell in ("8", "25.0% → 75.0%   +50.0", "12.5% → 37.5%   +25.0"):
        assert cell in row
    without = next(line for line in text.splitlines() if " 2 " in line)
    assert without.count("–") == 2


def test_without_success_scores_are_numbers() -> None:
    summary = {"recipe": "game", "seed": 3, "before": measured(0.25), "after": measured(0.75)}
    text = shown(results_table(summary))
    assert "Held-out score, game, seed 3" in text and "%" not in text
    assert "failed and are in no score" in text
    assert "-0.750 → -0.250  +0.500" in text and "0.125 → 0.375  +0.250" in text
    table = shown(scores_table(measured(0.75, success=0.75), title="a model"))
    assert "Held-out success, a model" in table and "75.0%" in table and "–" in table


def test_progress_prints_lines_where_there_is_no_terminal() -> None:
    console = TextConsole(file=io.StringIO(), width=120, force_terminal=False)
    metrics = {"unforked/success": 0.5, "turns": 2.0, "turn_entropy": 0.3}
    with Display(console).bar("training", 40) as after_step:
        for step in range(1, 41):
            after_step(step, step_figures(metrics))
    lines = console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]
    lines = [line for line in lines if line.strip()]
    assert len(lines) == 20 and lines[-1] == "step 40/40  success 0.50  turns 2.00  entropy 0.30"


HARM = "[bold red]x[/]\x1b]0;taken\x07\x1b[2J\x9b31m\u202e\r:boom:"
"""Markup, a window's title, an erased screen, a colour, letters from right to left, an emoji."""


def unharmed(text: str) -> bool:
    """Whether all that was printed is text, and the markup in it was left alone."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\n", "")
    return "[bold red]x[/]" in plain and ":boom:" in plain and plain.isprintable()


@pytest.mark.parametrize("terminal", [True, False])
def test_every_field_is_printed_as_text(terminal: bool, tmp_path: Path) -> None:
    record = tree_record(
        RECORDED, {"question": HARM, "answers": (HARM,)}, advantages=[0.0] * 4, values=[0.0] * 4
    )
    group = {**measured(0.5), "by_group": {HARM: measured(0.5)}}
    summary = {"recipe": HARM, "seed": HARM, "before": group, "after": group}
    config = {"recipe": HARM, "arguments": [], "config": {"x": HARM}}
    log = RunFolder.create(tmp_path / HARM.replace("/", ""), config)
    log.write_summary({**summary, "row_tokens": 3, "computed_tokens": 2})
    log.write_trees(1, [record])
    for node in record["nodes"]:
        failure = {"kind": "tool_error", "message": HARM}
        node |= {"stop": HARM, "text": HARM, "label": None, "failure": failure}

    def printed(print_it: Callable[[TextConsole], None]) -> str:
        console = TextConsole(file=io.StringIO(), width=400, force_terminal=terminal)
        print_it(console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    for renderable in (
        HARM,
        Text(HARM),
        tree_view(record),
        results_table(summary, group_by=HARM),
        scores_table(group, title=HARM, group_by=HARM),
    ):
        assert unharmed(printed(lambda console, r=renderable: console.print(r)))
    text = printed(lambda console: show_results(log, console, group_by=""))
    assert "[bold red]x[]" in text and re.sub(r"\x1b\[[0-9;]*m|\n", "", text).isprintable()


def test_what_is_waited_for_and_the_figures_of_a_step_are_text() -> None:
    console = TextConsole(file=io.StringIO(), width=200)
    display = Display(console)
    with display.waiting(HARM), display.bar(HARM, 1) as after_step:
        after_step(1, HARM)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sum(unharmed(line) for line in lines) == 2

    def waiting(display: Display) -> None:
        with display.waiting(HARM):
            pass

    def bar(display: Display) -> None:
        with display.bar(HARM, 1):
            pass

    def figures(display: Display) -> None:
        with display.bar("training", 1) as after_step:
            after_step(1, HARM)

    for show in (waiting, bar, figures):
        console = TextConsole(file=io.StringIO(), width=400, force_terminal=True)
        show(Display(console))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[bold red]x[/]" in text, show
        assert "\x1b]0" not in text and "\x1b[2J" not in text and "\x9b" not in text
