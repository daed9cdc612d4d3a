from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import Viewer, export, single_file
from tests.viewer.made_runs import IMAGE, SCRIPT, make_run


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
