"""What the README shows works as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from spanwise import recipes
from spanwise.batch import Batch
from spanwise.cli.options import configured
from tests.layers import LAYERS, PACKAGE
from tests.trees import of_rewards

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_lines_print_the_advantages_that_they_say() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    said = re.search(r"# \[\[(.*?)\]\]", BLOCKS[0])
    assert said is not None
    expected = [float(number) for number in said.group(1).split(",")]
    assert names["credit"][0].tolist() == pytest.approx(expected, abs=5e-5)


def test_the_recipe_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "my_exp.py"
    file.write_text(BLOCKS[1], encoding="utf-8")
    config = recipes.find(f"{file}:best_of_prompt")()
    assert type(config.advantage).__name__ == "BestOfPrompt"


PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))]
COMMANDS = {
    command.strip()
    for page in PAGES
    for command in re.findall(r"spanwise train (\w+(?: [^#`(;\n]*)?)", page)
    if "…" not in command and command.split()[0] in recipes.names()
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_commands_shown_are_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_exp.py").write_text(BLOCKS[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    name, *options = shlex.split(command)
    assert configured(name, options)


def test_the_house_is_listed_whole_and_in_the_order_of_imports() -> None:
    listed = re.search(r"^spanwise/\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    named = [line.split()[0].rstrip("/") for line in listed.group(1).splitlines()]
    assert all((PACKAGE / name).exists() for name in named)
    assert [name.removesuffix(".py") for name in named] == LAYERS[: LAYERS.index("__main__")]


def test_the_advantage_of_ones_own_does_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "my_exp.py"
    file.write_text(BLOCKS[1], encoding="utf-8")
    batch = Batch.from_trees([of_rewards(1.0, 0.0), of_rewards(-1.0, 0.0, 0.0)])
    advantages = recipes.find(f"{file}:best_of_prompt")().advantage(batch)
    assert advantages.sum(1).tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
