"""What the README shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spanwise import recipes
from spanwise.credit import Advantage, GroupAdvantage, SpanAdvantage, TreeAdvantage
from tests.layers import LAYERS, PACKAGE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
ROWS = re.findall(r"^\| `(\w+)`([^|]*)\| `(\w+)` \|[^|]*\| (.*) \|$", README, re.MULTILINE)


def test_it_is_short_and_names_every_page() -> None:
    assert len(README.splitlines()) < 170
    linked = set(re.findall(r"\(docs/(\w+\.md)", README))
    assert linked == {page.name for page in ROOT.glob("docs/*.md")}


def test_the_first_lines_print_the_advantages_that_they_say() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    said = re.search(r"# \[\[(.*?)\]\]", BLOCKS[0])
    assert said is not None
    expected = [float(number) for number in said.group(1).split(",")]
    assert names["credit"][0].tolist() == pytest.approx(expected, abs=5e-5)


def test_the_loop_of_ones_own_trains(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    assert re.findall(r"step (\d)", capsys.readouterr().out) == ["0", "1"]
    gradients = [p.grad for p in names["policy"].parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert names["loss"].isfinite() and any(g.abs().max() > 0 for g in gradients)
    before = names["shipped"].load().parameters()
    moved = [(a - b).abs().max() for a, b in zip(names["policy"].parameters(), before, strict=True)]
    assert 0 < torch.stack(moved).max() < 1e-3  # four steps of 1e-4
    batch, old = names["batch"], names["old"]
    engine = batch.engine_logprobs[batch.mask]
    assert torch.allclose(old[batch.mask], engine, atol=1e-4)  # the engine has the newest weights


@pytest.mark.parametrize(
    ("credit", "how", "ratio", "recipe"),
    [
        (credit, how.strip(), ratio, recipe)
        for credit, how, ratio, named in ROWS
        for recipe in re.findall(r"`(\w+)`", named)
    ],
)
def test_a_recipe_has_the_two_spans_of_its_row(
    credit: str, how: str, ratio: str, recipe: str
) -> None:
    config = recipes.find(recipe)()
    assert (spans_of(config.advantage), type(config.objective.ratio_spans).__name__) == (
        credit,
        ratio,
    )
    assert (how == ", over a tree") == isinstance(config.advantage, TreeAdvantage)


def spans_of(advantage: Advantage) -> str:
    if isinstance(advantage, SpanAdvantage):
        return type(advantage.spans).__name__
    return {GroupAdvantage: "Trajectory", TreeAdvantage: "Turn"}[type(advantage)]


def test_the_table_has_every_recipe_on_the_embedded_tasks() -> None:
    named = {recipe for *_, cell in ROWS for recipe in re.findall(r"`(\w+)`", cell)}
    embedded = {name for name in recipes.names() if name.endswith(("_chain", "_search"))}
    same_pair = {name.replace("_chain", "_search") for name in embedded if "_chain" in name}
    assert named == embedded - same_pair


def test_the_house_is_listed_whole_and_in_the_order_of_imports() -> None:
    listed = re.search(r"^spanwise/\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    named = [name for line in listed[1].splitlines() for name in line[2:].split("  ")[0].split()]
    assert all((PACKAGE / name).exists() for name in named)
    assert [name.rstrip("/").removesuffix(".py") for name in named] == LAYERS[
        : LAYERS.index("__main__")
    ]
