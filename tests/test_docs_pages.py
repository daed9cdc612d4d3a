"""The pages on writing one's own show files that work as they stand."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest

from spanwise import recipes
from spanwise.batch import Batch
from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.run.folder import RunFolder, tree_of
from tests.trees import of_rewards

DOCS = Path(__file__).parent.parent / "docs"


def written(page: Path, folder: Path) -> Path:
    """The files that a page shows; the first line of a block names its file."""
    text = page.read_text(encoding="utf-8")
    files: dict[str, list[str]] = defaultdict(list)
    for name, block in re.findall(r"^```python\n# (\w+\.py)\n(.*?)```", text, re.M | re.S):
        files[name].append(block)
    for name, blocks in files.items():
        (folder / name).write_text("\n\n".join(blocks), encoding="utf-8")
    return folder


def passes(file: Path, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of a file that a page shows, which imports the file beside it."""
    monkeypatch.syspath_prepend(file.parent)
    runpy.run_path(str(file))[test]()
    del sys.modules[file.stem.removeprefix("test_")]


def test_the_game_is_checked_fitted_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written(DOCS / "environment.md", tmp_path))
    passes(tmp_path / "test_guess.py", "test_guess", monkeypatch)

    fit = ["--fit.num-steps", "25", "--fit.rows-per-step", "8", "--fit.warmup-steps", "5"]
    assert main(["build-base", "guess.py:player", "--folder", "player", *fit]) == 0
    few = ["--steps", "2", "--prompts-per-step", "4", "--evaluation.num-tasks", "4"]
    assert main(["train", "guess.py:guessing", "--folder", "run", *few]) == 0
    log = RunFolder.open(tmp_path / "run")
    assert {"score", "success", "env/wasted"} <= log.read_metrics()[-1].keys()
    nodes = [node for record in log.read_trees(1) for node in tree_of(record).nodes[1:]]
    on_the_way = {node.reward for node in nodes if node.stop == "continue"}
    assert (
        on_the_way and on_the_way <= {-0.1, -0.5} and any("higher" in node.label for node in nodes)
    )
    shorter = configured("guess.py:guessing", ["--env.max-guesses", "4"]).env
    assert getattr(shorter, "max_guesses", None) == 4


def test_an_estimator_and_what_goes_with_it_are_checked_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written(DOCS / "estimator.md", tmp_path))
    passes(tmp_path / "test_mine.py", "test_best_of_prompt", monkeypatch)

    few = ["--steps", "2", "--prompts-per-step", "4", "--evaluation.num-tasks", "4"]
    mine = ["--objective.ratio-spans", "mine.py:Undecided", "--objective.ratio-spans.nats", "0.1"]
    mine += ["--advantage.scale", "2", "--schedule.period", "5", "--folder", "run"]
    assert main(["train", "mine.py:best_of_prompt", *few, *mine]) == 0
    log = RunFolder.open(tmp_path / "run")
    first, second = log.read_metrics()
    assert first["own/longest_turn"] > 1
    assert second["learning_rate"] == pytest.approx(0.8 * first["learning_rate"])
    assert first["clip_frac/span_low"] == 0.0  # the policy has not moved yet
    diary = (tmp_path / "run" / "diary.txt").read_text().splitlines()
    assert diary == [f"{line['step']} {line['score']}" for line in (first, second)]
    record = log.read_config()["config"]
    assert record["advantage"] == {"class": "BestOfPrompt", "scale": 2.0}
    assert record["objective"]["ratio_spans"] == {"class": "Undecided", "nats": 0.1}


def test_the_advantage_of_ones_own_does_what_it_says(tmp_path: Path) -> None:
    recipe = recipes.find(f"{written(DOCS / 'estimator.md', tmp_path)}/mine.py:best_of_prompt")
    batch = Batch.from_trees([of_rewards(1.0, 0.0), of_rewards(-1.0, 0.0, 0.0)])
    assert recipe().advantage(batch).sum(1).tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]


def test_the_page_says_what_every_field_of_a_batch_is() -> None:
    page = (DOCS / "estimator.md").read_text(encoding="utf-8")
    table = page[page.index("## What a batch holds") : page.index("## A partition")]
    named = re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE)
    assert sorted(named) == sorted(field.name for field in fields(Batch))


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_shown_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written(page, tmp_path))
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"spanwise train (\w[^#`(;\n]*)", text):
        name, *options = shlex.split(command)
        assert "…" in command or configured(name, options)


def test_every_term_stands_once_and_in_its_place() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 80 and terms == sorted(set(terms), key=str.casefold)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, place in re.findall(r"\]\(([\w./]*\.(?:md|png|svg))?#?([\w-]*)\)", text):
        file = page.parent / target if target else page
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M) if place else []
        slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert not place or place in slugs, place
