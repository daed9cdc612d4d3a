from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import Viewer, export
from spanwise.viewer import folder as folder_module
from spanwise.viewer.folder import ViewedRun, named
from spanwise.viewer.server import NotFound
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
    log = make_run(tmp_path / "run", steps=1, finished=False)
    run = ViewedRun(tmp_path / "run")
    with log.metrics_path.open("a") as file:
        file.write('{"step": 2, "sco')
    found = run.metrics()
    assert found["text"].count("\n") == 1
    with log.metrics_path.open("a") as file:
        file.write('re": 1}\n')
    assert json.loads(run.metrics(found["end"])["text"]) == {"step": 2, "score": 1}


def test_a_file_that_has_become_shorter_is_read_from_the_start(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", steps=3)
    run = ViewedRun(tmp_path / "run")
    end = run.metrics()["end"]
    log.metrics_path.write_text('{"step": 1}\n')
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
    assert [len(tree["returns"]) for tree in run.trees(2)] == [4, 4, 4]
    assert run.tree(2, 1)["task"]["id"] == "task-1"
    with pytest.raises(RunError, match="no trees of step 3"):
        run.trees(3)
    with pytest.raises(RunError, match="trees 0 to 2, not 3"):
        run.tree(2, 3)


def test_a_file_of_trees_that_was_cut_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    path = tmp_path / "run/trees/step_00001.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    run = ViewedRun(tmp_path / "run")
    with pytest.raises(RunError, match="cannot be read"):
        run.trees(1)
    assert run.tree(2, 0)["nodes"]


def test_trees_that_are_written_anew_are_read_anew(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run")
    run = ViewedRun(tmp_path / "run")
    assert len(run.trees(1)) == 3
    log.write_trees(1, log.read_trees(1)[:1])
    os.utime(log.trees_path(1), ns=(1, 1))
    assert len(run.trees(1)) == 1


def test_a_folder_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run")
    config = log.read_config() | {"schema": 1}
    log.config_path.write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"written by spanwise 0\.1") as raised:
        ViewedRun(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_run_is_live_until_it_ends_or_falls_silent(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", finished=False)
    run = ViewedRun(tmp_path / "run")
    assert run.state()["live"]
    long_ago = time.time() - 2 * folder_module.QUIET_S
    os.utime(log.metrics_path, (long_ago, long_ago))
    assert not run.state()["live"]
    os.utime(log.metrics_path)
    log.write_summary({})
    assert not run.state()["live"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"schema": 2, "nodes": [{"path": []}]}\n')
    for name in ("trees/step_00003.jsonl", "metrics.jsonl", "summary.json"):
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    run = ViewedRun(tmp_path / "run")
    with pytest.raises(RunError, match="is a link"):
        run.trees(3)
    assert run.metrics()["text"] == "" and run.state()["summary"] is None
    assert [note.split()[0] for note in run.state()["notes"]] == ["summary.json", "metrics.jsonl"]
    (tmp_path / "run/config.json").unlink()
    (tmp_path / "run/config.json").symlink_to(secret)
    with pytest.raises(RunError, match=r"config\.json is not shown"):
        ViewedRun(tmp_path / "run")


def test_a_link_that_takes_the_place_of_a_file_in_a_loop_is_never_read(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=1)
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"secret": 1}\n')
    run, path = ViewedRun(tmp_path / "run"), tmp_path / "run/metrics.jsonl"
    plain, over = path.read_text(), threading.Event()

    def swap() -> None:
        for name in itertools.cycle(("link", "plain")):
            new = tmp_path / name
            new.symlink_to(secret) if name == "link" else new.write_text(plain)
            new.replace(path)
            if over.is_set():
                return

    swapping = threading.Thread(target=swap)
    swapping.start()
    found = {run.metrics()["text"] for _ in range(3000)}
    over.set()
    swapping.join()
    assert found == {"", plain}


def test_a_folder_of_trees_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    for name in ("run", "private"):
        make_run(tmp_path / name)
    shutil.rmtree(tmp_path / "run/trees")
    (tmp_path / "run/trees").symlink_to(tmp_path / "private/trees")
    run = ViewedRun(tmp_path / "run")
    for read in (run.tree_steps, lambda: run.trees(1)):
        with pytest.raises(RunError, match="link"):
            read()


POISONS = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "deep": lambda path: path.write_text('{"a":' * 50_000),
    "nested": lambda path: path.write_text('{"a":' * 900 + "1" + "}" * 900),
    "list": lambda path: path.write_text("[1, 2]"),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "empty": lambda path: path.write_text(""),
    "digits": lambda path: path.write_text('{"a": ' + "1" * 10_000 + "}"),
    "huge": lambda path: path.write_text('{"a": 1e999, "before": {"score": NaN}}'),
    "odd": lambda path: path.write_text('{"before": [1], "after": 3, "recipe": {}}'),
}
"""Ways to put something else in the place of a file; those of the last three can be read."""


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "trees/step_00002.jsonl"])
def test_what_cannot_be_shown_costs_one_line(tmp_path: Path, name: str, poison: str) -> None:
    make_run(tmp_path / "run", steps=2)
    make_run(tmp_path / "other", steps=2)
    viewer = Viewer([tmp_path / "run", tmp_path / "other"])
    path = tmp_path / "run" / name
    path.unlink()
    POISONS[poison](path)
    state, other = json.loads(viewer.answer("/api/runs"))
    assert other["notes"] == [] and other["summary"]
    assert json.loads(viewer.answer("/api/runs/0/steps")) == [1, 2, 20]
    assert "text" in json.loads(viewer.answer("/api/runs/0/metrics"))
    assert len(json.loads(viewer.answer("/api/runs/0/trees/1"))) == 3
    if name == "summary.json" and poison not in ("digits", "huge", "odd"):
        (note,) = state["notes"]
        assert note.startswith("summary.json") and "\n" not in note and len(note) < 200
    if name.startswith("trees"):
        if poison == "empty":
            assert viewer.answer("/api/runs/0/trees/2") == "[]"
        else:
            with pytest.raises(NotFound, match=r"cannot be read|not shown"):
                viewer.answer("/api/runs/0/trees/2")
    export(viewer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0], parse_constant=pytest.fail)
    assert len(data["runs"]) == 2 and data["runs"][1]["state"]["notes"] == []


@pytest.mark.parametrize("poison", POISONS)
def test_a_folder_without_readable_settings_does_not_hide_the_others(
    tmp_path: Path, poison: str
) -> None:
    for name in ("run", "bad"):
        make_run(tmp_path / name, steps=1)
    (tmp_path / "bad/config.json").unlink()
    POISONS[poison](tmp_path / "bad/config.json")
    with pytest.warns(RuntimeWarning, match="left out: .*bad") as told:
        viewer = Viewer([tmp_path / "bad", tmp_path / "run"])
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert [state["name"] for state in viewer.states()] == ["run"]
    with pytest.raises(RunError, match="bad"):
        Viewer([tmp_path / "bad"])


def test_a_file_without_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", steps=1)
    run = ViewedRun(tmp_path / "run")
    monkeypatch.setattr(folder_module, "MOST_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(folder_module, "MOST_BYTES", 1 << 16)
    for name in ("summary.json", "metrics.jsonl", "trees/step_00001.jsonl"):
        with (tmp_path / "run" / name).open("wb") as file:
            file.truncate(1 << 40)  # no block of it is on the disk
    assert "more than 1 MB" in run.state()["notes"][0]
    assert run.metrics() == {"start": 0, "end": 0, "text": "", "more": False}
    with pytest.raises(RunError, match="more than 1 MB"):
        run.trees(1)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(RunError, match="is no run folder"):
            ViewedRun(folder)


def test_names_tell_folders_apart(tmp_path: Path) -> None:
    for name in ("x/run", "y/run", "y/other"):
        make_run(tmp_path / name, steps=1, trees_at=())
    runs = [ViewedRun(tmp_path / name) for name in ("x/run", "y/run", "y/other")]
    assert named(runs) == ["x/run", "y/run", "y/other"]
    assert named(runs[1:]) == ["run", "other"]
    with pytest.raises(RunError, match="given twice"):
        named([runs[0], ViewedRun(tmp_path / "y/../x/run")])
