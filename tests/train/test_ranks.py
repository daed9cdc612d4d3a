"""Two gloo processes do what one does: every loss, gradient norm and figure of ten steps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bench.left_behind import differing, left_behind
from spanwise.run.folder import RunFolder
from spanwise.runtime.distributed import ALONE, Processes, Ranks, balanced
from spanwise.train.checkpoint import checkpoint_folders
from tests.train.rank_runs import cases, resumed_cases, run, run_cases, run_stopped

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
"""One thread a process."""


def torchrun_command(*command: str) -> list[str]:
    """A module under ``torchrun`` with two processes."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [sys.executable, *run, *command]


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun_command(*command),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for name, config in resumed_cases().items():
        run_stopped(config, folder / "resumed" / "to_two" / name, rank=0)
    done = torchrun("-m", "tests.train.rank_runs", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    run_cases(folder / "alone", "fsdp")
    for name, config in resumed_cases().items():
        run(config, folder / "resumed" / "alone" / name)
        run(config, folder / "resumed" / "to_one" / name, resume=True)
    return folder


@pytest.mark.parametrize("sharding", ["replicate", "fsdp"])
@pytest.mark.parametrize("name", sorted(cases()))
def test_two_processes_train_as_one_does(runs: Path, sharding: str, name: str) -> None:
    alone, two = runs / "alone" / "fsdp" / name, runs / sharding / name
    assert RunFolder.open(alone).read_metrics()[-1]["step"] == cases()[name].steps
    assert_same_run(alone, two)


@pytest.mark.parametrize("to", ["to_one", "to_two"])
@pytest.mark.parametrize("name", sorted(resumed_cases()))
def test_another_number_of_processes_goes_on_with_a_run(runs: Path, to: str, name: str) -> None:
    assert_same_run(runs / "resumed" / "alone" / name, runs / "resumed" / to / name)


@pytest.mark.parametrize("name", sorted(resumed_cases()))
def test_two_processes_stop_together_and_go_on_to_the_same_end(runs: Path, name: str) -> None:
    """Byte for byte; one of them had the signal. The checkpoint of the stop displaced another."""
    whole, stopped = (left_behind(runs / "resumed" / kind / name) for kind in ("whole", "stopped"))
    both = whole.keys() & stopped.keys()
    assert {"metrics", "summary", "checkpoints/step_00004/state-00002-of-00002.safetensors"} <= both
    assert "checkpoints/step_00003/state.json" in stopped
    assert both.isdisjoint(differing(whole, stopped))


def assert_same_run(first: Path, second: Path) -> None:
    """To rounding: every figure of every step, the measurements, and the weights at the end."""
    one, other = RunFolder.open(first), RunFolder.open(second)
    lines, others = one.read_metrics(), other.read_metrics()
    assert [line["step"] for line in others] == [line["step"] for line in lines]
    for line, found in zip(lines, others, strict=True):
        assert found.keys() == line.keys()
        for key in line:
            if key.startswith("seconds/") or key in ("packed", "computed_to_total"):
                continue  # how long it took, and how micro-batches were made
            assert found[key] == pytest.approx(line[key], rel=1e-5, abs=1e-5), (line["step"], key)
    assert other.read_summary()["after"] == one.read_summary()["after"]
    files = [path.relative_to(first) for path in first.glob("checkpoints/final/*.safetensors")]
    assert files
    for file in files:
        tensors, found = load_file(first / file), load_file(second / file)
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=2e-4)


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    small = ["--steps", "1", "--prompts-per-step", "2", "--evaluation.num-tasks", "2"]
    done = torchrun(
        "-m", "spanwise", "train", "at2po_search", *small, "--folder", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Held-out success") == 1  # one process speaks
    log = RunFolder.open(tmp_path / "run")
    assert [line["step"] for line in log.read_metrics()] == [1]
    assert len(log.read_trees(1)) == 2


def test_a_signal_to_torchrun_stops_the_run_once(tmp_path: Path) -> None:
    spec = f"{ROOT}/tests/train/resumable.py:long"
    process = subprocess.Popen(
        torchrun_command("-m", "spanwise", "train", spec, "--folder", str(tmp_path)),
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert out.count("spanwise: stopped by SIGTERM") == 1, error[-3000:]
    assert error.count("spanwise: stopping at the next point") == 1
    names = [path.name for path in checkpoint_folders(tmp_path / "checkpoints")]
    assert names == [f"step_{RunFolder.open(tmp_path).read_metrics()[-1]['step']:05d}"]


def test_a_failing_process_ends_all_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from dataclasses import dataclass, replace\n"
        "from spanwise.credit import GroupAdvantage\n"
        "from spanwise.errors import SpanwiseError\n"
        "from spanwise.recipes.search import grpo_search\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Fails(GroupAdvantage):\n"
        "    def __call__(self, batch):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise SpanwiseError('no credit today')\n"
        "        return super().__call__(batch)\n"
        "def fails():\n"
        "    return replace(grpo_search(), advantage=Fails(), steps=1, prompts_per_step=2)\n"
    )
    done = torchrun("-m", "spanwise", "train", f"{tmp_path}/mine.py:fails",
                    "--evaluation.num-tasks", "2", "--folder", str(tmp_path / "run"))  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("spanwise, process 1: no credit today") == 1


def test_a_process_that_hangs_ends_all_by_the_watchdog_of_those_that_wait(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "from dataclasses import dataclass, replace\n"
        "from spanwise.credit import GroupAdvantage\n"
        "from spanwise.errors import SpanwiseError\n"
        "from spanwise.recipes.search import grpo_search\n"
        "from spanwise.runtime import watchdog\n"
        "watchdog.GRACE_S = 1.0\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Hangs(GroupAdvantage):\n"
        "    def __call__(self, batch):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            time.sleep(1000)\n"
        "        return super().__call__(batch)\n"
        "def hangs():\n"
        "    return replace(grpo_search(), advantage=Hangs(), steps=1, prompts_per_step=2)\n"
    )
    done = torchrun("-m", "spanwise", "train", f"{tmp_path}/mine.py:hangs",
                    "--evaluation.num-tasks", "2", "--folder", str(tmp_path / "run"),
                    "--watchdog.stop-after-s", "10")  # fmt: skip
    assert done.returncode != 0
    # Whichever waits is first: process 0 for the other, or process 1 for its own scoring.
    first = r"process (0: stopping: .* for the update|1: stopping: .* for the scoring), step 1"
    assert re.search(first, done.stderr)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(2, 4))
def test_work_is_shared_out_evenly_and_each_piece_counts_once(costs: list[int], size: int) -> None:
    shares = balanced(costs, size)
    assert sorted(number for share in shares for number in share) == list(range(len(costs)))
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= sum(costs) / size + max(costs)
    work = [Ranks(rank=rank, size=size).assign(costs) for rank in range(size)]
    assert len({len(own) for own in work}) == 1  # all join in as often
    counted = sorted(number for own in work for number, counts in own if counts)
    assert counted == list(range(len(costs)))


def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes().join("auto") is ALONE
    assert ALONE.is_main and ALONE.gather("x") == ["x"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="names one device for 2 processes"):
        Processes().join("cuda:1")
