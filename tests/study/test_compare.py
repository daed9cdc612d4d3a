from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.cli import main
from spanwise.run.folder import RunError
from spanwise.study.compare import (
    bootstrap_interval,
    probability_of_improvement,
    read_run,
    run_groups,
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


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    # Mean 0.495, standard error sqrt((100^2 - 1) / 12) / 100 / 10 = 0.0289; +-1.96 of them.
    values = [i / 100 for i in range(100)]
    found = bootstrap_interval(lambda sample: sum(sample) / len(sample), values)
    assert found is not None
    assert found[0] == pytest.approx(0.495 - 1.96 * 0.0289, abs=0.004)
    assert found[1] == pytest.approx(0.495 + 1.96 * 0.0289, abs=0.004)


def test_few_seeds_have_no_interval() -> None:
    assert bootstrap_interval(max, [0.1, 0.9]) is None
    assert bootstrap_interval(probability_of_improvement, [0.1, 0.2, 0.3], [0.5]) is None


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a0", "a1", "b0")]
    make_run(folders[0], seed=0, steps=1, trees_at=())
    make_run(folders[1], seed=1, steps=1, trees_at=(), offset=0.1)
    log = make_run(folders[2], seed=0, steps=1, trees_at=())
    config = log.read_config()
    config["config"]["objective"]["clip_low"] = 0.1
    log.config_path.write_text(json.dumps(config))
    groups = run_groups([read_run(folder, "exact_match") for folder in folders])
    assert [(g.name, [round(s, 3) for s in g.scores]) for g in groups] == [
        ("at2po_search, objective.clip_low 0.003", [0.8, 0.9]),
        ("at2po_search, objective.clip_low 0.1", [0.8]),
    ]


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        make_run(tmp_path / name, steps=1, trees_at=())
    with pytest.raises(RunError, match="same settings, seed 0"):
        run_groups([read_run(tmp_path / name, "greedy") for name in ("one", "copy")])


def test_runs_that_have_not_ended_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", finished=False)
    with pytest.raises(RunError, match="has not ended"):
        read_run(tmp_path / "run", "exact_match")
    log = make_run(tmp_path / "odd")
    log.write_summary({"seed": 0, "before": {}})
    with pytest.raises(RunError, match="lacks 'exact_match'"):
        read_run(tmp_path / "odd", "exact_match")


def test_the_command_prints_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", seed=seed, steps=1, trees_at=())
        make_run(tmp_path / f"b{seed}", recipe="grpo_search", seed=seed, steps=1, trees_at=(),
                 offset=0.1)  # fmt: skip
    assert main(["compare", *(str(p) for p in sorted(tmp_path.iterdir()))]) == 0
    out = capsys.readouterr().out
    assert "+40.0 (+40.0" in out or "+40.0 (40.0 to" in out
    assert "100 (100 to 100)" in out and "0 (0 to 0)" in out
    assert main(["compare"]) == 2
    assert "compare RUN RUN" in capsys.readouterr().err
