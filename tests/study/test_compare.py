from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.cli import main
from spanwise.run.folder import RunError, RunFolder
from spanwise.study.compare import (
    probability_of_improvement,
    read_run,
    run_groups,
    score_of_all,
)
from tests.viewer.made_runs import make_run

SCORES = st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=6)


def test_probability_of_improvement_by_hand() -> None:
    # 3 x 2 pairs: .7 and .8 beat .6 and tie or beat .7: (.5+1) + (.7,.7) half...
    # .6: loses to .7, ties .6 -> .5; .7: beats .6, ties .7 -> 1.5; .8: beats both -> 2. 4 / 6.
    assert probability_of_improvement([0.6, 0.7, 0.8], [0.6, 0.7]) == pytest.approx(4 / 6)


@given(SCORES, SCORES)
def test_one_side_wins_what_the_other_loses(ours: list[float], theirs: list[float]) -> None:
    there = probability_of_improvement(ours, theirs)
    assert there + probability_of_improvement(theirs, ours) == pytest.approx(1)
    assert probability_of_improvement(ours, ours) == pytest.approx(0.5)
    assert probability_of_improvement([x + 2 for x in ours], theirs) == 1


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a0", "a1", "b0")]
    make_run(folders[0], seed=0, steps=1, trees_at=())
    make_run(folders[1], seed=1, steps=1, trees_at=(), offset=0.1)
    log = make_run(folders[2], seed=0, steps=1, trees_at=())
    config = log.read_config()
    config["config"]["objective"]["clip_low"] = 0.1
    log.config_path.write_text(json.dumps(config))
    groups = run_groups([read_run(folder) for folder in folders])
    assert [(g.name, [round(s, 3) for s in g.after("success")]) for g in groups] == [
        ("at2po_search, objective.clip_low 0.003", [0.8, 0.9]),
        ("at2po_search, objective.clip_low 0.1", [0.8]),
    ]


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        make_run(tmp_path / name, steps=1, trees_at=())
    with pytest.raises(RunError, match="same settings, seed 0"):
        run_groups([read_run(tmp_path / name) for name in ("one", "copy")])


def test_runs_that_have_not_ended_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", finished=False)
    with pytest.raises(RunError, match="has not ended"):
        read_run(tmp_path / "run")
    log = make_run(tmp_path / "odd")
    log.write_summary({"seed": 0, "before": {}})
    with pytest.raises(RunError, match="lacks 'after'"):
        read_run(tmp_path / "odd")


def test_runs_are_compared_by_what_all_of_them_were_measured_by(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("search", "game")]
    for seed, folder in enumerate(folders):
        make_run(folder, seed=seed, steps=1, trees_at=())
    runs = [read_run(folder) for folder in folders]
    assert score_of_all(runs) == "success" and score_of_all(runs, "greedy_score") == "greedy_score"
    log = RunFolder.open(folders[1])
    summary = log.read_summary()
    for when in ("before", "after"):
        del summary[when]["success"]
    log.write_summary(summary)
    runs = [read_run(folder) for folder in folders]
    assert score_of_all(runs) == "score"
    with pytest.raises(RunError, match="measured by 'success'; the scores of all are greedy_score"):
        score_of_all(runs, "success")


def test_the_command_prints_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", seed=seed, steps=1, trees_at=())
        make_run(tmp_path / f"b{seed}", recipe="grpo_search", seed=seed, steps=1, trees_at=(),
                 offset=0.1)  # fmt: skip
    assert main(["compare", *(str(p) for p in sorted(tmp_path.iterdir()))]) == 0
    out = capsys.readouterr().out
    assert "Held-out success, %" in out and "+40.0 (40.0 to" in out
    assert "100 (100 to 100)" in out and "0 (0 to 0)" in out
    assert main(["compare", "--score", "nope", *(str(p) for p in tmp_path.iterdir())]) == 2
    assert main(["compare", *(str(p) for p in sorted(tmp_path.iterdir())), "--score", "score"]) == 0
    assert "+0.400 (" in capsys.readouterr().out
    assert main(["compare"]) == 2
    assert "compare RUN RUN" in capsys.readouterr().err
