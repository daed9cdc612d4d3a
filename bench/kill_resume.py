"""Kill runs at random moments, resume them, and compare what they leave behind byte for byte.

    python -m bench.kill_resume --kills 30

Each trial starts a run as a process of its own, sends it SIGKILL after a random part of
the time that a whole run takes, resumes it, and compares with a run that nobody killed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.record import save
from tests.train.resumable import differing, left_behind

SMALL = (
    *("--evaluation.num-tasks", "8", "--checkpoints.every", "2"),
    *("--prompts-per-step", "4", "--evaluation.every", "2"),
)
CASES: dict[str, tuple[str, ...]] = {
    "at2po_search": ("at2po_search", *SMALL, "--steps", "6"),
    "at2po_search, adaptive KL": (
        *("at2po_search", *SMALL, "--steps", "6"),
        *("--kl.coefficient", "0.01", "--kl.target", "0.001"),
    ),
    "sae_chain": ("sae_chain", *SMALL, "--steps", "4", "--critic.pretraining-steps", "4"),
}
"""Of three trials, the first, second and third."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as parent:
        wholes = {case: whole_run(Path(parent), case) for case in CASES}
        for number in range(options.kills):
            case = list(CASES)[number % len(CASES)]
            folder, started_s, whole_s = wholes[case]
            after_s = draw.uniform(started_s, whole_s)
            row = trial(Path(parent) / f"trial_{number}", case, folder, after_s)
            rows.append(row)
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    alike = sum(row["equal"] for row in rows)
    print(f"{alike} of {len(rows)} byte-equal")
    save("kill_resume", rows, kills=len(rows), equal=alike)


def whole_run(parent: Path, case: str) -> tuple[Path, float, float]:
    """A run that nobody kills: its folder, and when its first line and its end came."""
    folder = parent / case.replace(" ", "_").replace(",", "")
    begun = time.monotonic()
    process = started(*CASES[case], "--folder", str(folder))
    while process.poll() is None and not (folder / "journal").exists():
        time.sleep(0.01)
    first_s = time.monotonic() - begun
    if process.wait() != 0:
        raise SystemExit(f"the whole run of {case} failed")
    return folder, first_s, time.monotonic() - begun


def trial(folder: Path, case: str, whole: Path, after_s: float) -> dict[str, Any]:
    """Kill one run and resume it."""
    process = started(*CASES[case], "--folder", str(folder))
    try:
        process.wait(timeout=after_s)
        flight = "finished before the kill"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        flight = in_flight(folder)
        if not (folder / "summary.json").exists() and (folder / "config.json").exists():
            started("--resume", str(folder)).wait()
    differ = differing(left_behind(whole), left_behind(folder))
    row = {"case": case, "killed_after_s": round(after_s, 2), "in_flight": flight}
    return {**row, "equal": not differ, "differing": differ}


def in_flight(folder: Path) -> str:
    """What a killed run was doing, from what it left."""
    if (folder / "summary.json").exists():
        return "the end"
    if list(folder.glob("checkpoints/*.partial")):
        return "writing a checkpoint"
    lines = metrics.read_text().count("\n") if (metrics := folder / "metrics.jsonl").exists() else 0
    journal = sorted(folder.glob("journal/*"), key=lambda path: path.stat().st_mtime)
    if not journal:
        return f"between checkpoint and sampling, {lines} lines of metrics"
    turns = journal[-1].read_bytes().count(b"\n")
    return f"{lines} lines of metrics, {turns} turns in {journal[-1].stem}"


def started(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "spanwise", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
