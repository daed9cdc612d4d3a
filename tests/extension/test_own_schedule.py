"""A learning-rate schedule in the user's own file, by recipe and by option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spanwise.cli import main

MINE = '''
from dataclasses import dataclass, replace

from spanwise.learn.critic import NoCritic
from spanwise.learn.schedule import Schedule
from tests.train.letters import letters


@dataclass(frozen=True, kw_only=True)
class Halving(Schedule):
    base: float = 2.0
    """Factor by which the rate falls from one step to the next."""

    def __call__(self, step, num_steps):
        return self.base ** (1 - step)


def halving():
    return replace(letters(critic=NoCritic()), schedule=Halving(), steps=3, prompts_per_step=4)


def plain():
    return replace(halving(), schedule=letters().schedule)
'''


def rates(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["learning_rate"] for line in lines]


def test_a_schedule_of_ones_own_scales_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mine.py:plain", "--folder", "a"]) == 0
    assert main(["train", "mine.py:halving", "--folder", "b"]) == 0
    option = ["--schedule", "mine.py:Halving", "--schedule.base", "4"]
    assert main(["train", "mine.py:plain", *option, "--folder", "c"]) == 0
    (full, *others) = rates(Path("a"))
    assert others == [full, full]
    assert rates(Path("b")) == pytest.approx([full, full / 2, full / 4])
    assert rates(Path("c")) == pytest.approx([full, full / 4, full / 16])
