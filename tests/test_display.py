from __future__ import annotations

import io

from rich.console import Console

from spanwise.display import Display, printable, results_table, tree_to_show, tree_view
from spanwise.run.folder import tree_record
from tests.run.test_folder import TREE


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_tree_is_shown_with_its_credit_and_why_a_turn_was_forked() -> None:
    record = tree_record(
        TREE,
        {"question": "who ?", "answers": ("Bo Lin",)},
        advantages=[0.0, 0.5, 0.0, -1.25],
        values=[0.0, 0.5, 0.0, -1.25],
    )
    text = shown(tree_view(record))
    assert "who ?" in text and "Bo Lin" in text
    call = next(line for line in text.splitlines() if "search q" in line)
    assert "H 0.17" in call and "V +0.50" in call and "A +0.50" in call  # (0.1 + 0.25) / 2
    fork = next(line for line in text.splitlines() if "+r1" in line)
    assert (
        "0.1 " in fork and "beside 0.0 (0.25)" in fork and "reward 1" in fork and "A -1.25" in fork
    )
    assert "engine" not in call and "failure (m)" in text


def test_credit_stands_out_in_colour_beside_what_is_dim() -> None:
    record = tree_record(TREE, {"question": "?", "answers": ("a",)}, advantages=[0, 0.5, 0, -1.25])
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(tree_view(record))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32m  A +0.50" in text and "\x1b[31m  A -1.25" in text and "\x1b[2mH " in text


def test_model_text_is_text() -> None:
    assert printable("[red]x[/red]\x1b]0;title\x07\u202e\nnext") == "[red]x[/red]]0;title next"
    record = tree_record(TREE, {"question": "[bold]?", "answers": ("a",)}, advantages=[0.0] * 4)
    assert "[bold]?" in shown(tree_view(record))


def test_the_tree_with_the_most_even_outcomes_is_shown() -> None:
    def record(*rewards: float) -> dict[str, object]:
        return {"nodes": [{"reward": None}, *({"reward": r} for r in rewards)]}

    records = [record(1, 1, 1), record(1, 0), record(1, 0, 0, 0)]
    assert tree_to_show(records) is records[1]


def test_results_before_and_after() -> None:
    def measured(share: float) -> dict[str, object]:
        group = {"exact_match": share, "greedy": share / 2, "n": 4}
        return {**group, "n": 8, "failed": 3, "by_group": {"1": group}}

    summary = {
        "recipe": "demo",
        "seed": 3,
        "before": measured(0.25),
        "after": measured(0.75),
    }
    text = shown(results_table(summary))
    assert "demo, seed 3" in text
    assert "6 trajectories failed and are counted as wrong" in text
    row = next(line for line in text.splitlines() if " all " in line)
    for cell in ("8", "25.0% → 75.0%   +50.0", "12.5% → 37.5%   +25.0"):
        assert cell in row


def test_progress_prints_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    metrics = {"unforked/exact_match": 0.5, "tool_calls": 2.0, "turn_entropy": 0.3}
    with Display(console).steps(40) as progress:
        for step in range(1, 41):
            progress.step({"step": step, **metrics})
    lines = console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]
    lines = [line for line in lines if line.strip()]
    assert len(lines) == 20 and lines[-1].startswith("step 40/40  exact match 0.50")
