from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spanwise
from spanwise.run.folder import (
    RunError,
    RunFolder,
    new_folder,
    refuse_links_out,
    tree_of,
    tree_record,
)
from tests.trees import RECORDED


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path / "run", {"recipe": "r"})
    record = tree_record(RECORDED, {"question": "?"}, advantages=[0.0, 1.0, 0.0, -1.0])
    log.write_trees(3, [record, record])
    assert log.tree_steps() == [3]
    back = RunFolder.open(tmp_path / "run").read_trees(3)
    assert [tree_of(entry) for entry in back] == [RECORDED, RECORDED]
    assert back[0]["nodes"][1]["advantage"] == 1.0 and back[0]["nodes"][1]["value"] is None


def test_what_a_kill_left_half_written_is_no_step(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path / "run", {"recipe": "r"})
    log.write_trees(1, [])
    (tmp_path / "run" / "trees" / "step_00002.jsonl.partial").write_text("{")
    assert log.tree_steps() == [1]


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"recipe": "r"})
    with pytest.raises(RunError, match="holds a run already"):
        RunFolder.create(tmp_path, {"recipe": "r"})


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        RunFolder.open(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot write the run folder"):
        RunFolder.create(blocked / "run", {})
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text(json.dumps({"schema": 999}))
    with pytest.raises(RunError, match=r"another version \(schema 999\)"):
        RunFolder.open(newer)
    (newer / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json"):
        RunFolder.open(newer)


def test_a_run_of_another_version_is_refused_in_one_line_that_says_which(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path, {"recipe": "r"})
    assert log.read_config() == {"schema": 2, "version": spanwise.__version__, "recipe": "r"}
    for record, version in (({"schema": 1}, "0.1"), ({"schema": 3, "version": "0.9.1"}, "0.9.1")):
        log.config_path.write_text(json.dumps(record))
        with pytest.raises(RunError) as error:
            RunFolder.open(tmp_path)
        assert str(error.value) == (
            f"{tmp_path} was written by spanwise {version} (schema {record['schema']}); this "
            f"version reads schema 2. Look at it with spanwise {version}"
        )


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path / "run", {})
    log.write_summary({"recipe": "first"})
    with pytest.raises(TypeError, match="does not belong"):
        log.write_summary({"recipe": object()})
    assert log.read_summary() == {"recipe": "first"}


def test_figures_that_are_not_numbers_are_still_json(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path / "run", {})
    log.write_metrics({"loss": float("nan"), "norm": float("inf"), "ok": 1.0})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "norm": None, "ok": 1.0}


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    log = RunFolder.create(tmp_path, {"recipe": "r"})
    for text in ("", "[1]", "3", "null"):
        log.config_path.write_text(text)
        with pytest.raises(RunError, match=r"cannot read .*config\.json"):
            RunFolder.open(tmp_path)
        (tmp_path / "metrics.jsonl").write_text(text + "\n")
        with pytest.raises(RunError, match=r"cannot read .*metrics\.jsonl"):
            log.read_metrics()


def test_a_damaged_tree_is_refused_in_one_line() -> None:
    record = tree_record(RECORDED, {"question": "?"}, advantages=[0.0] * 4)
    del record["nodes"][1]["stop"]
    with pytest.raises(RunError, match="a tree cannot be read: 'stop' is missing"):
        tree_of(record)
    for nodes in (None, 3, [3], [None]):
        with pytest.raises(RunError, match="a tree cannot be read"):
            tree_of({**record, "nodes": nodes})


@pytest.mark.parametrize(
    "name",
    ["checkpoints/step_00001/a", "journal/a.jsonl", "metrics.jsonl", "trees/a", "lock"],
)
def test_a_folder_of_another_program_is_refused_and_left_as_it_was(
    tmp_path: Path, name: str
) -> None:
    (file := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(RunError, match="of another program; give another --folder"):
        RunFolder.create(tmp_path, {"recipe": "r"})
    assert file.read_text() == "mine" and not (tmp_path / "config.json").exists()


def test_a_model_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RunError, match=r"holds config\.json of another program"):
        RunFolder.create(tmp_path, {"recipe": "r"})


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="--folder is empty"):
        RunFolder.create(Path(), {"recipe": "r"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoints", "journal", "metrics.jsonl", "trees/step_1"])
def test_links_that_lead_out_of_a_run_are_refused(tmp_path: Path, name: str) -> None:
    RunFolder.create(run := tmp_path / "run", {"recipe": "r"})
    (outside := tmp_path / "outside").mkdir()
    if (place := run / name).is_dir():
        place.rmdir()
    place.symlink_to(outside)
    with pytest.raises(RunError, match="leads out of the run folder"):
        refuse_links_out(run)
    place.unlink()
    place.symlink_to(run / "config.json")
    refuse_links_out(run)


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(new_folder, [tmp_path / "runs" / "r"] * 5))
    assert sorted(path.name for path in made) == ["r", "r-2", "r-3", "r-4", "r-5"]
