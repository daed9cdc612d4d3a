"""The pages on writing one's own show files that work as they stand."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.run.folder import RunFolder, tree_of

DOCS = Path(__file__).parent.parent / "docs"


def written(page: str, folder: Path) -> Path:
    """The files that a page shows; the first line of a block names its file."""
    text = (DOCS / page).read_text(encoding="utf-8")
    files: dict[str, list[str]] = defaultdict(list)
    for name, block in re.findall(r"^```python\n# (\w+\.py)\n(.*?)```", text, re.M | re.S):
        files[name].append(block)
    for name, blocks in files.items():
        (folder / name).write_text("\n\n".join(blocks), encoding="utf-8")
    return folder


def test_the_game_is_checked_fitted_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written("environment.md", tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    exec((tmp_path / "test_guess.py").read_text(), names)
    names["test_guess"]()  # pyright: ignore[reportCallIssue]

    fit = ["--fit.num-steps", "25", "--fit.rows-per-step", "8", "--fit.warmup-steps", "5"]
    assert main(["build-base", "guess.py:player", "--folder", "player", *fit]) == 0
    few = ["--steps", "2", "--prompts-per-step", "4", "--evaluation.num-tasks", "4"]
    assert main(["train", "guess.py:guessing", "--folder", "run", *few]) == 0
    log = RunFolder.open(tmp_path / "run")
    assert {"score", "success", "env/wasted"} <= log.read_metrics()[-1].keys()
    nodes = [node for record in log.read_trees(1) for node in tree_of(record).nodes[1:]]
    on_the_way = {node.reward for node in nodes if node.stop == "continue"}
    assert on_the_way == {-0.1, -0.5} and any("higher" in node.label for node in nodes)
    shorter = configured("guess.py:guessing", ["--env.max-guesses", "4"]).env
    assert getattr(shorter, "max_guesses", None) == 4
