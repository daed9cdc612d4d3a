from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import Viewer, export, single_file
from spanwise.viewer.private import settings_without_private, text_without_private
from tests.viewer.made_runs import IMAGE, SCRIPT, make_run, record, small_tree


def exported(folder: Path, *runs: Path) -> tuple[str, Any]:
    path = folder / "page.html"
    export(Viewer(list(runs)), path)
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return page, json.loads(found[1])


def test_one_file_holds_everything(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page, data = exported(tmp_path, tmp_path / "run")
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', page)
    (run,) = data["runs"]
    assert len(run["metrics"].splitlines()) == 20
    assert sorted(run["trees"], key=int) == ["1", "2", "20"]
    assert run["trees"]["2"][1]["record"]["task"]["id"] == "task-1"
    assert run["state"]["notes"] == []
    assert run["trees"]["2"][1]["overview"]["returns"] == [1.0, 0.0, None, 0.0]


def test_text_of_the_model_stays_inside_the_data(tmp_path: Path) -> None:
    make_run(tmp_path / "run", recipe="</script><b>")
    page, data = exported(tmp_path, tmp_path / "run")
    assert SCRIPT not in page and IMAGE not in page and "</script><b>" not in page
    assert data["runs"][0]["trees"]["1"][0]["record"]["nodes"][1]["outcome"]["query"] == SCRIPT


def test_the_policy_names_the_one_script_and_the_one_style(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page, _ = exported(tmp_path, tmp_path / "run")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "unsafe" not in policy[1] and "connect-src" not in policy[1]
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inner
        digest = base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_a_long_run_is_thinned_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", steps=30, trees_at=tuple(range(1, 31)))
    monkeypatch.setattr(single_file, "MOST_LINES", 10)
    monkeypatch.setattr(single_file, "MOST_STEPS", 3)
    monkeypatch.setattr(single_file, "TREE_BYTES", 1)
    _, data = exported(tmp_path, tmp_path / "run")
    (run,) = data["runs"]
    steps = [json.loads(line)["step"] for line in run["metrics"].splitlines()]
    assert len(steps) == 10 and (steps[0], steps[-1]) == (1, 30)
    assert sorted(run["trees"], key=int) == ["1", "15", "30"]
    assert [len(trees) for trees in run["trees"].values()] == [1, 1, 1]
    assert run["state"]["notes"] == [
        "this file holds 10 of 30 lines of metrics",
        "this file holds 3 trees, of 3 of the 30 steps that kept theirs",
    ]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(RunError, match="cannot write"):
        export(Viewer([tmp_path / "run"]), tmp_path / "missing" / "page.html")


def test_what_is_private_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "annika")
    monkeypatch.setattr("socket.gethostname", lambda: "node17")
    secrets = {
        "folder": "/home/annika/runs/a b/secret-place/run",
        "model": {"path": "/mnt/secret-place/annika/Qwen3"},
        "env": {
            "class": "/home/annika/secret-place/mine.py:Mine",
            "url": "http://annika:hunter2@box.secret.local:8000/retrieve?key=hunter2",
            "database": "annika:hunter2@10.1.2.3/secret-place",
            "proxy": "see http://box.secret.local:3128 and ../../secret-place/x on node17",
            "windows": "C:\\Users\\annika\\secret-place\\x.jsonl",
        },
        "tracker": {
            "api_key": "hunter2",
            "token": "hunter2",
            "wandbApiKey": "hunter2",
            "clientSecretValue": "hunter2",
            "db-password-1": ["hunter2"],
        },
        "headers": {"Authorization": "hunter2", "note": "Bearer hunter2hunter2"},
        "hub": [
            "0123456789abcdef0123456789abcdef01234567",
            "hf_hunter2hunter2hunter2",
            "ghp_hunter2hunter2hunter2",
        ],
        "seed": 3,
    }
    words = ["--folder=/home/annika/secret-place/run", "--own.api-key", "hunter2",
             "--own.key=hunter2", "--sampler.urls", "http://node17:8000", "http://box.secret.local:8001",
             "--env.hosts", "node17", "box.secret.local", "box7:9000", "--steps", "8"]  # fmt: skip
    log = make_run(tmp_path / "run", steps=1, trees_at=())
    config = {**log.read_config(), "arguments": words, "config": secrets}
    config["recipe"] = "/home/annika/secret-place/recipes.py:mine"
    log.config_path.write_text(json.dumps(config))
    log.write_metrics({"step": 2, "own/note": "/home/annika/secret-place/x"})
    tree = record(small_tree())
    tree["nodes"][4]["failure"]["message"] = (
        "http://annika:hunter2@node17/ is silent (/a/secret-place/x)"
    )
    tree["nodes"][1]["observation_text"] = "open http://annika:hunter2@web/ and /home/annika/x"
    tree["nodes"][2]["text"] = "see /home/annika/x"
    log.write_trees(1, [tree])
    page, data = exported(tmp_path, tmp_path / "run")
    for private in (
        "annika",
        "node17",
        "hunter2",
        "secret",
        "box7",
        "10.1.2.3",
        "abcdef0123",
        str(tmp_path),
    ):
        assert private not in page, private
    (run,) = data["runs"]
    told = run["state"]["config"]
    assert told["recipe"] == "recipes.py:mine" and told["config"]["env"]["class"] == "mine.py:Mine"
    assert told["config"]["model"]["path"] == "Qwen3" and told["config"]["seed"] == 3
    assert told["config"]["env"]["url"] == "http://…" and told["arguments"][-2:] == ["--steps", "8"]
    assert run["trees"]["1"][0]["record"]["nodes"][1]["observation_text"] == (
        "open http://…@web/ and ~/x"
    )


def test_ordinary_settings_are_left_as_they_are() -> None:
    settings = {
        "recipe": "at2po_search", "model": {"path": "Qwen/Qwen3-1.7B"}, "max_turn_tokens": 64,
        "advantage": {"class": "SpanAdvantage", "spans": {"class": "Token"}}, "lam": 0.95,
        "objective": {"ratio_spans": {"class": "Turn"}}, "loss": "token", "stop": ["</search>"],
        "arguments": ["--objective.ratio-spans", "token", "--rollout.choose", "random", "--x=a/b"],
        "version": "0.3.1", "monkey": "x",
        "env": {"data": "runs/data.jsonl", "name": "spanwise.envs.chain:Chain"},
    }  # fmt: skip
    assert settings_without_private(settings) == settings


def test_ordinary_words_are_left_as_they_are() -> None:
    words = (
        "sketch-based-modelling pkg_resources_extern sk-learn-contrib-extras hf-datasets-library"
    )
    code = (
        "0123456789abcdef0123456789abcdef01234567 a@b.c /etc/passwd http://en.wikipedia.org/wiki/A"
    )
    assert text_without_private([words, code]) == [words, code]
    assert settings_without_private(words) == words


@pytest.mark.parametrize(
    "part",
    ["a", "a:", "a.", "a@", "~", "/", "://", "eyJ-", "sk-", "a-", "/home/", "1.", "\\", "..", "é"],
)
def test_no_text_takes_for_ever(part: str) -> None:
    began = time.process_time()
    settings_without_private(part * (200_000 // len(part)))
    text_without_private(part * (200_000 // len(part)))
    assert time.process_time() - began < 5.0


def test_runs_are_told_apart_by_number_not_by_the_folders_above(tmp_path: Path) -> None:
    for user in ("annika", "bertil"):
        make_run(tmp_path / user / "run", steps=1)
    page, data = exported(tmp_path, tmp_path / "annika/run", tmp_path / "bertil/run")
    assert [run["state"]["name"] for run in data["runs"]] == ["run", "run (2)"]
    assert "annika" not in page and "bertil" not in page


def test_a_tree_that_cannot_be_shown_costs_a_note(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", steps=1)
    deep: Any = 0
    for _ in range(700):
        deep = {"a": deep}
    good, bad = record(small_tree()), record(small_tree())
    bad["task"]["info"] = deep
    log.write_trees(1, [good, bad])
    log.write_trees(2, [])
    _, data = exported(tmp_path, tmp_path / "run")
    (run,) = data["runs"]
    assert [len(run["trees"][step]) for step in ("1", "2", "20")] == [1, 0, 3]
    assert any("tree 1 of step 1" in note for note in run["state"]["notes"])
