"""Code in a folder of the user's own: found under any name, and blamed by its own line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from spanwise import errors
from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.lookup import UnknownName, load

REPOSITORY = Path(__file__).parents[2]

RECIPE = '''
from dataclasses import dataclass, replace

from corridor_of_mine import Doors, share

from spanwise import spans
from spanwise.credit import GroupAdvantage
from spanwise.learn.critic import NoCritic
from spanwise.partitions import Partition
from tests.train.letters import letters


@dataclass(frozen=True, kw_only=True)
class Pairs(Partition):
    length: int = 2
    """Length of a span, in tokens."""

    def __call__(self, batch):
        return spans.fixed_length(batch.mask, self.length)


@dataclass(frozen=True, kw_only=True)
class Broken(GroupAdvantage):
    def __call__(self, batch):
        return super().__call__(batch) * (1 / len([]))  # a bug


def mine():
    return replace(
        letters(critic=NoCritic()), env=Doors(), metrics=(share,), steps=1, prompts_per_step=4
    )


def ppo():
    return replace(letters(), env=Doors(), steps=1, prompts_per_step=4)
'''

NEIGHBOUR = """
from dataclasses import dataclass

from tests.train.letters import Letters


@dataclass(frozen=True, kw_only=True)
class Doors(Letters):
    bug: str = ""

    def messages(self, task):
        if self.bug == "messages":
            return [{}["role"]]  # a bug of the prompt
        return super().messages(task)

    async def reply(self, task, turns):
        if self.bug == "reply":
            raise ValueError(task.info["judge"])  # a bug of the reply
        return await super().reply(task, turns)


def share(trees, batch):
    return {"share": 1 / len(trees)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder, of which this process remembers nothing afterwards."""
    (tmp_path / "random.py").write_text(RECIPE)
    (tmp_path / "corridor_of_mine.py").write_text(NEIGHBOUR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``python -m spanwise`` in the user's folder, which it puts first in sys.path."""
    return subprocess.run(
        [sys.executable, "-m", "spanwise", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.processes
def test_a_recipe_called_random_is_broken_mended_resumed_and_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("json", "math", "queue", "search", "torch", "yaml"):
        (folder / f"{name}.py").write_text("raise AssertionError('imported')\n")
    neighbour = folder / "corridor_of_mine.py"
    neighbour.write_text(NEIGHBOUR.replace("1 / len(trees)", "1 / (len(trees) - len(trees))"))
    run = command(folder, "train", "random.py:mine", "--folder", "run")
    assert run.returncode == 1, run.stderr
    *_, place, _, underlined, error = run.stderr.rstrip().splitlines()
    assert place == f'  File "{neighbour}", line {line_of(neighbour, "1 / (len")}, in share'
    assert "^" in underlined and error == "ZeroDivisionError: division by zero"

    neighbour.write_text(NEIGHBOUR)
    assert main(["train", "--resume", "run"]) == 2
    assert "put --allow random.py:mine behind the command" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--allow", "random.py:mine"]) == 0
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert [line["own/share"] for line in metrics] == [0.25]
    assert main(["eval", "run", "--num-tasks", "4", "--allow", "random.py:mine"]) == 0
    assert "run" in capsys.readouterr().out


def test_a_bug_in_an_estimator_keeps_its_traceback(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        main(["train", "random.py:mine", "--advantage", "random.py:Broken"])
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert last.filename == f"{folder}/random.py" and last.name == "__call__"
    assert last.line is not None and last.line.endswith("# a bug")


SETTINGS = """
from dataclasses import dataclass, replace
from spanwise.credit import GroupAdvantage
from spanwise.recipes.chain import grpo_chain


@dataclass(frozen=True, kw_only=True)
class Picky(GroupAdvantage):
    scale: float

    def __post_init__(self):
        if self.scale < 0:
            list(zip([1], [], strict=True))  # a bug


def no_steps():
    return replace(grpo_chain(), steps=0)
"""


def test_a_refusal_is_one_line_with_its_place_and_a_bug_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "settings.py"
    file.write_text(SETTINGS)
    assert main(["train", "settings.py:no_steps"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("spanwise: steps") and told.count("\n") == 1
    assert told.endswith(f"(settings.py:{line_of(file, 'steps=0')} in no_steps)\n")

    picky = ["train", "grpo_chain", "--advantage=settings.py:Picky"]
    with pytest.raises(SystemExit):
        main(picky)
    assert "--advantage.scale" in capsys.readouterr().err  # it has no default
    with pytest.raises(ValueError, match="zip") as raised:
        main([*picky, "--advantage.scale", "-1"])
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(file), line_of(file, "# a bug"))


@pytest.mark.parametrize(
    ("bug", "error", "told"),
    [
        ("reply", "KeyError: 'judge'", "16 of 16 branches failed"),
        ("messages", "KeyError: 'role'", "prompt of task"),
    ],
)
def test_a_bug_in_an_environment_stops_the_run_with_its_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], bug: str, error: str, told: str
) -> None:
    options = ["--env.bug", bug, "--evaluation.num-tasks", "16"]
    assert main(["train", "random.py:mine", *options]) == 2
    trace, _, message = capsys.readouterr().err.rpartition("\n\nspanwise: ")
    file = folder / "corridor_of_mine.py"
    line = line_of(file, f"a bug of the {'prompt' if bug == 'messages' else bug}")
    assert trace.splitlines()[:2] == [
        "Traceback (most recent call last):",
        f'  File "{file}", line {line}, in {bug}',
    ]
    assert trace.rstrip().endswith(error) and "spanwise" not in trace
    assert told in message and message.count("\n") == 1
    assert f"{error} (corridor_of_mine.py:{line} in {bug})" in message


def test_spans_of_ones_own_serve_credit_ratio_and_correction(folder: Path) -> None:
    places = ["--advantage.spans", "--objective.ratio-spans", "--importance.spans"]
    named = [word for place in places for word in (place, "random.py:Pairs")]
    lengths = [f"{place}.length={at + 2}" for at, place in enumerate(places)]
    words = ["--importance.tis-cap", "2", *named, *lengths, "--folder", "run"]
    assert main(["train", "random.py:ppo", *words]) == 0

    pairs, base = load("random.py:Pairs", {}, "spans"), load("random.py:ppo", {}, "recipe")()
    expected = replace(
        base,
        advantage=replace(base.advantage, spans=pairs(length=2)),
        objective=replace(base.objective, ratio_spans=pairs(length=3)),
        importance=replace(base.importance, spans=pairs(length=4), tis_cap=2.0),
        folder=Path("run"),
    )
    assert configured("random.py:ppo", words) == expected
    record = json.loads((folder / "run" / "config.json").read_text())
    assert record["config"]["importance"]["spans"] == {"class": "Pairs", "length": 4}
    assert configured(record["recipe"], record["arguments"]) == expected


def test_a_module_below_the_working_folder_or_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "user_packages", set())
    installed = folder / "site-packages" / "users_package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    (installed / "exp.py").write_text("def mine():\n    return 1 / 0\n")
    (folder / "beside.py").write_text("from users_package.exp import mine\n")
    with pytest.raises(UnknownName, match=r"exp.py:1|beside.py:1 in <module> imports users_pack"):
        load("beside:mine", {}, "recipe")
    sys.path.append(str(installed.parent))
    with pytest.raises(ZeroDivisionError) as raised:
        load("beside:mine", {}, "recipe")()
    assert "exp.py" not in errors.place(raised.value)  # a library's, as far as is known
    with pytest.raises(ZeroDivisionError) as raised:
        load("users_package.exp:mine", {}, "recipe")()
    assert errors.place(raised.value) == "exp.py:2 in mine"
    with pytest.raises(UnknownName, match=r"no recipe module users_package\.expp, neither"):
        load("users_package.expp:mine", {}, "recipe")


def test_what_is_missing_is_told_with_what_is_near(folder: Path) -> None:
    (folder / "warm.py").write_text("import corridor_of_mne\n")
    with pytest.raises(UnknownName, match=r"^warm.py:1 in <module> .* mean corridor_of_mine\?$"):
        load("warm.py:mine", {}, "recipe")
    with pytest.raises(UnknownName, match=r"no recipe file rand.py in .* did you mean random.py\?"):
        load("rand.py:mine", {}, "recipe")
    with pytest.raises(UnknownName, match=r"no 'pairs'; did you mean Pairs\? it has Pairs, Broken"):
        load("random.py:pairs", {}, "spans")
    (folder / "bug.py").write_text("x = 1\nimport json, no_such_package_here.deeper\n")
    with pytest.raises(UnknownName, match=r"bug.py:2 in <module> imports no_such_package_here,"):
        load("bug.py:x", {}, "recipe")
    (folder / "bug.py").write_text("x = 1 / 0\n")
    for _ in range(2):  # nothing half-made is kept
        with pytest.raises(ZeroDivisionError):
            load("bug.py:x", {}, "recipe")


@pytest.mark.processes
def test_a_file_is_one_module_also_in_a_process_of_its_own(folder: Path) -> None:
    (folder / "my tools.v2.py").write_text(
        "from beside_it import SCALE\n\n\nclass Number(int):\n    def scaled(self):\n"
        "        return Number(self * SCALE)\n"
    )
    (folder / "beside_it.py").write_text("SCALE = 2\n")
    number = load("my tools.v2.py:Number", {}, "number")
    assert load(f"{folder}/../{folder.name}/my tools.v2.py:Number", {}, "number") is number
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        scaled = pool.submit(number.scaled, number(21)).result()
    assert scaled == 42 and type(scaled) is number
