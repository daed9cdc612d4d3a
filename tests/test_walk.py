"""The road of docs/walk.md is there, is short, and is the one that a training step takes."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType

from spanwise.recipes.search import at2po_search
from spanwise.rollout import TreeSearch
from spanwise.runtime.signals import StopSignals
from spanwise.train.loop import train_step
from spanwise.train.start import start

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
STOPS = re.findall(r"^(\d+)\. `(spanwise/[\w/]+\.py):([\w.]+)`: ", PAGE, re.MULTILINE)
NAMES = [(file, function) for _, file, function in STOPS]


def test_the_stops_are_few_and_numbered() -> None:
    numbers = [int(number) for number, _, _ in STOPS]
    assert numbers == list(range(1, len(numbers) + 1)) and PAGE.count("`spanwise/") == len(numbers)
    assert len(numbers) <= 30 and len({file for file, _ in NAMES}) <= 18
    assert f"{len(numbers)} functions in {len({file for file, _ in NAMES})} files" in PAGE


def test_every_stop_exists() -> None:
    missing = [name for name in NAMES if name[1] not in functions(ROOT / name[0])]
    assert not missing


def test_a_training_step_calls_them_in_this_order(tmp_path: Path) -> None:
    assert [name for name in called(tmp_path / "run") if name in NAMES] == NAMES


def functions(file: Path) -> set[str]:
    """Qualified names of all functions of a file."""

    def inside(code: CodeType) -> set[str]:
        nested = [const for const in code.co_consts if isinstance(const, CodeType)]
        return {code.co_qualname}.union(*map(inside, nested))

    return inside(compile(file.read_text(encoding="utf-8"), str(file), "exec"))


def called(folder: Path) -> list[tuple[str, str]]:
    """The functions of spanwise that one small step calls, in the order of their first calls."""
    config = at2po_search()
    config = replace(
        config,
        prompts_per_step=2,
        steps=1,
        rollout=TreeSearch(
            num_chains=2,
            num_rounds=1,
            num_expansions=1,
            max_turn_tokens=48,
            max_response_tokens=320,
        ),
        # Whether rows can be packed is tried on the first batch, which calls token_scores early.
        update=replace(config.update, packing="rows"),
    )
    found: dict[tuple[str, str], None] = {}
    inside = f"{ROOT}/spanwise/"

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside):
            found[code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname] = None

    run = start(config, recipe="at2po_search", folder=folder, arguments=(), resume=False)
    try:
        with StopSignals(run.ranks) as signals:
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                train_step(run, 1, signals)
            finally:
                sys.setprofile(before)
    finally:
        run.close()
    return list(found)
