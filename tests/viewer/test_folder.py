from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import folder as folder_module
from spanwise.viewer.folder import ViewedRun, named
from tests.viewer.made_runs import make_run, metrics


def test_metrics_are_read_from_where_the_last_reading_ended(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", steps=3, finished=False)
    run = ViewedRun(tmp_path / "run")
    first = run.metrics()
    assert [json.loads(line)["step"] for line in first["text"].splitlines()] == [1, 2, 3]
    assert run.metrics(first["end"])["text"] == ""
    log.write_metrics(metrics(4))
    second = run.metrics(first["end"])
    assert json.loads(second["text"])["step"] == 4 and not second["more"]


def test_a_line_that_is_being_written_is_left_for_the_next_reading(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=1, finished=False)
    run = ViewedRun(tmp_path / "run")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "rew')
    found = run.metrics()
    assert found["text"].count("\n") == 1
    with run.metrics_path.open("a") as file:
        file.write('ard": 1}\n')
    assert json.loads(run.metrics(found["end"])["text"]) == {"step": 2, "reward": 1}


def test_a_file_that_has_become_shorter_is_read_from_the_start(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=3)
    run = ViewedRun(tmp_path / "run")
    end = run.metrics()["end"]
    run.metrics_path.write_text('{"step": 1}\n')
    assert run.metrics(end)["start"] == 0


def test_long_metrics_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", steps=50)
    run = ViewedRun(tmp_path / "run")
    monkeypatch.setattr(folder_module, "MOST_BYTES", 2000)
    steps: list[int] = []
    start, more = 0, True
    while more:
        found = run.metrics(start)
        steps += [json.loads(line)["step"] for line in found["text"].splitlines()]
        start, more = found["end"], found["more"]
    assert steps == list(range(1, 51))


def test_trees_are_listed_and_read_one_by_one(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    run = ViewedRun(tmp_path / "run")
    (tmp_path / "run/trees/step_00002.jsonl.partial").write_text("")
    (tmp_path / "run/trees/notes.txt").write_text("")
    assert run.tree_steps() == [1, 2, 20]
    listed = run.trees(2)
    assert [tree["turns"] for tree in listed["trees"]] == [5, 5, 5] and listed["notes"] == []
    assert run.tree(2, 1)["task"]["id"] == "task-1"
    with pytest.raises(RunError, match="no trees of step 3"):
        run.trees(3)
    with pytest.raises(RunError, match="trees 0 to 2, not 3"):
        run.tree(2, 3)


def test_damaged_trees_are_left_out_and_the_others_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    path = tmp_path / "run/trees/step_00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n\n" + lines[1][:-40])
    run = ViewedRun(tmp_path / "run")
    listed = run.trees(1)
    assert [tree is None for tree in listed["trees"]] == [False, True, True]
    assert listed["notes"] == ["2 of 3 trees of step 1 cannot be read"]
    assert run.tree(1, 0)["nodes"]
    with pytest.raises(RunError, match="tree 1 of step 1 cannot be read"):
        run.tree(1, 1)


def test_trees_that_are_written_anew_are_read_anew(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run")
    run = ViewedRun(tmp_path / "run")
    assert len(run.trees(1)["trees"]) == 3
    log.write_trees(1, log.read_trees(1)[:1])
    os.utime(log.trees_path(1), ns=(1, 1))
    assert len(run.trees(1)["trees"]) == 1


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    folder = tmp_path / "run"
    assert ViewedRun(folder).state()["notes"] == []

    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21')
    (folder / "summary.json").write_text("{")
    os.utime(folder / "metrics.jsonl", (time.time() - 1000,) * 2)
    (folder / "config.json").write_text(json.dumps({"schema": 99, "recipe": "later"}))
    state = ViewedRun(folder).state()
    assert state["config"]["recipe"] == "later" and state["summary"] is None
    cut, newer, damaged = sorted(
        state["notes"], key=lambda note: note.split()[0] != "metrics.jsonl:"
    )
    assert "cut off" in cut
    assert {newer.split()[0], damaged.split()[0]} == {"config.json", "summary.json"}
    assert any("schema 99" in note for note in state["notes"])

    (folder / "config.json").unlink()
    notes = ViewedRun(folder).state()["notes"]
    assert any("config.json is missing" in note for note in notes)


def test_a_run_is_live_until_it_ends_or_falls_silent(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", finished=False)
    run = ViewedRun(tmp_path / "run")
    assert run.state()["live"]
    long_ago = time.time() - 2 * folder_module.QUIET_S
    os.utime(run.metrics_path, (long_ago, long_ago))
    assert not run.state()["live"]
    os.utime(run.metrics_path)
    log.write_summary({})
    assert not run.state()["live"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"nodes": [{"path": []}]}\n')
    for name in ("trees/step_00003.jsonl", "metrics.jsonl", "summary.json"):
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    run = ViewedRun(tmp_path / "run")
    with pytest.raises(RunError, match="no trees of step 3"):
        run.trees(3)
    assert run.metrics()["text"] == "" and run.state()["summary"] is None


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder"):
        ViewedRun(tmp_path / "missing")
    with pytest.raises(RunError, match="is no run folder"):
        ViewedRun(tmp_path)


def test_names_tell_folders_apart(tmp_path: Path) -> None:
    for name in ("x/run", "y/run", "y/other"):
        make_run(tmp_path / name, steps=1, trees_at=())
    runs = [ViewedRun(tmp_path / name) for name in ("x/run", "y/run", "y/other")]
    assert named(runs) == ["x/run", "y/run", "y/other"]
    assert named(runs[1:]) == ["run", "other"]
    with pytest.raises(RunError, match="given twice"):
        named([runs[0], ViewedRun(tmp_path / "y/../x/run")])
