"""Two gloo processes do what one does: every loss, gradient norm and figure of ten steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from spanwise.runlog import RunLog
from spanwise.train.ranks import ALONE, Processes, Ranks, balanced
from tests.train.rank_runs import cases, run_cases

ROOT = Path(__file__).parents[2]


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a module or file under ``torchrun``, one thread a process."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun("-m", "tests.train.rank_runs", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    run_cases(folder / "alone", "fsdp")
    return folder


@pytest.mark.parametrize("sharding", ["replicate", "fsdp"])
@pytest.mark.parametrize("name", sorted(cases()))
def test_two_processes_train_as_one_does(runs: Path, sharding: str, name: str) -> None:
    alone = RunLog.open(runs / "alone" / "fsdp" / name)
    two = RunLog.open(runs / sharding / name)
    lines, others = alone.read_metrics(), two.read_metrics()
    assert [line["step"] for line in others] == [line["step"] for line in lines]
    assert lines[-1]["step"] == cases()[name].steps
    for line, other in zip(lines, others, strict=True):
        assert other.keys() == line.keys()
        for key in line:
            if key.startswith("seconds/") or key in ("packed", "computed_to_total"):
                continue  # how long it took, and how micro-batches were made
            assert other[key] == pytest.approx(line[key], rel=1e-5, abs=1e-5), (line["step"], key)
    assert two.read_summary()["after"] == alone.read_summary()["after"]


@pytest.mark.parametrize("sharding", ["replicate", "fsdp"])
@pytest.mark.parametrize("name", sorted(cases()))
def test_a_checkpoint_of_two_is_one_of_one(runs: Path, sharding: str, name: str) -> None:
    first = RunLog.open(runs / "alone" / "fsdp" / name).checkpoint_path("final")
    second = RunLog.open(runs / sharding / name).checkpoint_path("final")
    files = sorted(file.name for file in first.glob("*.safetensors"))
    assert files == sorted(file.name for file in second.glob("*.safetensors"))
    for file in files:
        one, other = load_file(first / file), load_file(second / file)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=2e-4)


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    small = ["--steps", "1", "--prompts-per-step", "2", "--evaluation.num-tasks", "2"]
    done = torchrun(
        "-m", "spanwise", "train", "at2po_search", *small, "--folder", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Held-out exact match") == 1  # one process speaks
    log = RunLog.open(tmp_path / "run")
    assert [line["step"] for line in log.read_metrics()] == [1]
    assert len(log.read_trees(1)) == 2


def test_a_failing_process_ends_all_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from dataclasses import dataclass, replace\n"
        "from spanwise.credit import GroupAdvantage\n"
        "from spanwise.recipes.search import grpo_search\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Fails(GroupAdvantage):\n"
        "    def __call__(self, batch):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise ValueError('no credit today')\n"
        "        return super().__call__(batch)\n"
        "def fails():\n"
        "    return replace(grpo_search(), advantage=Fails(), steps=1, prompts_per_step=2)\n"
    )
    done = torchrun("-m", "spanwise", "train", f"{tmp_path}/mine.py:fails",
                    "--evaluation.num-tasks", "2", "--folder", str(tmp_path / "run"))  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("spanwise, process 1: no credit today") == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(2, 4))
def test_work_is_shared_out_evenly_and_each_piece_counts_once(costs: list[int], size: int) -> None:
    shares = balanced(costs, size)
    assert sorted(number for share in shares for number in share) == list(range(len(costs)))
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= sum(costs) / size + max(costs)
    work = [Ranks(rank=rank, size=size).work(costs) for rank in range(size)]
    assert len({len(own) for own in work}) == 1  # all join in as often
    counted = sorted(number for own in work for number, counts in own if counts)
    assert counted == list(range(len(costs)))


def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes().join("auto") is ALONE
    assert ALONE.leads and ALONE.gather("x") == ["x"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="names one device for 2 processes"):
        Processes().join("cuda:1")
