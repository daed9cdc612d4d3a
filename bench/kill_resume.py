"""Kill runs at random moments, resume them, and compare what they leave behind byte for byte.

    python -m bench.kill_resume --kills 30

Each trial starts a run as a process of its own, sends it SIGKILL, resumes it, and compares
with a run that nobody killed. A third of the kills come at any moment of a batch drawn at
random, of the start or of the end; a third in an update; a third while a checkpoint is
written. A run that ends before its kill is started again, with another moment.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.left_behind import differing, left_behind
from bench.record import save
from spanwise.run.folder import RunFolder

SMALL = (
    *("--evaluation.num-tasks", "8", "--checkpoints.every", "2"),
    *("--prompts-per-step", "4", "--evaluation.every", "2"),
)
CASES: dict[str, tuple[str, ...]] = {
    "at2po_search": ("at2po_search", *SMALL, "--steps", "6"),
    "at2po_search, KL penalty": (
        *("at2po_search", *SMALL, "--steps", "6"),
        *("--kl.coefficient", "0.01"),
    ),
    "sae_chain, critic fitted first": (
        *("sae_chain", *SMALL, "--steps", "4", "--critic.pretraining-steps", "4"),
    ),
}
AIMS = ("any moment", "an update", "a checkpoint")
WRITING_S = 0.08
"""A checkpoint of these models takes about so long to write."""
POLL_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1, help="kills under way at once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as parent,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        folders = pool.map(lambda case: whole_run(Path(parent), case), CASES)
        wholes = dict(zip(CASES, folders, strict=True))

        def row(number: int) -> dict[str, Any]:
            case, aim = list(CASES)[number // len(AIMS) % len(CASES)], AIMS[number % len(AIMS)]
            draw = random.Random(f"{options.seed} {number}")
            found = trial(Path(parent) / f"trial_{number}", case, wholes[case], aim, draw)
            print(f"kill={number + 1}", *(f"{k}={v}" for k, v in found.items()), flush=True)
            return {"kill": number + 1, **found}

        rows = list(pool.map(row, range(options.kills)))
    Console().print(table(rows))
    alike = sum(row["equal"] for row in rows)
    print(f"{alike} of {len(rows)} byte-equal")
    save("kill_resume", rows, kills=len(rows), equal=alike)


def whole_run(parent: Path, case: str) -> Path:
    """The folder of a run that nobody kills."""
    folder = parent / case.replace(" ", "_").replace(",", "")
    if started(*CASES[case], "--folder", str(folder)).wait() != 0:
        raise SystemExit(f"the whole run of {case} failed")
    return folder


def trial(folder: Path, case: str, whole: Path, aim: str, draw: random.Random) -> dict[str, Any]:
    """Kill one run and resume it."""
    lines, redrawn = RunFolder.open(whole).read_metrics(), 0
    while True:
        begun = time.monotonic()
        process = started(*CASES[case], "--folder", str(folder))
        await_moment(process, folder, lines, aim, draw)
        process.kill()
        process.wait()
        killed_s = time.monotonic() - begun
        if not (folder / "summary.json").exists():
            break
        shutil.rmtree(folder)
        redrawn += 1
    flight = in_flight(folder, lines)
    if (folder / "config.json").exists():
        status = started("--resume", str(folder)).wait()
    else:
        status = started(*CASES[case], "--folder", str(folder)).wait()
    differ = differing(left_behind(whole), left_behind(folder)) if status == 0 else ["end"]
    shutil.rmtree(folder)
    row = {"case": case, "aim": aim, "killed_after_s": round(killed_s, 2), "in_flight": flight}
    return {**row, "redrawn": redrawn, "equal": not differ, "differing": differ}


def await_moment(
    process: subprocess.Popen[bytes],
    folder: Path,
    lines: list[dict[str, Any]],
    aim: str,
    draw: random.Random,
) -> None:
    """Return when the run is to be killed, or has ended."""
    if aim == "any moment":
        number = draw.randint(0, len(lines))  # the last: while the end is measured
        line = lines[min(number, len(lines) - 1)]
        wait_until(process, lambda: written_lines(folder) >= number)
        time.sleep(draw.uniform(0, sum(v for k, v in line.items() if k.startswith("seconds/"))))
    elif aim == "an update":
        number = draw.randrange(len(lines))
        wait_until(process, lambda: sampled(folder, lines) > number)
        time.sleep(draw.uniform(0, lines[number].get("seconds/update", 0.0)))
    else:
        due = draw.randint(1, lines[-1]["step"] // 2)  # one is due every second step
        seen: set[str] = set()

        def writing() -> bool:
            partial = {p.name for p in folder.glob("checkpoints/*.partial")}
            seen.update(partial)
            return bool(partial) and len(seen) >= due

        wait_until(process, writing)
        time.sleep(draw.uniform(0, WRITING_S))


def wait_until(process: subprocess.Popen[bytes], condition: Any) -> None:
    while process.poll() is None and not condition():
        time.sleep(POLL_S)


def sampled(folder: Path, lines: list[dict[str, Any]]) -> int:
    """How many batches of a run have been sampled to their end."""
    written = written_lines(folder)
    if written < len(lines) and turns(folder, lines[written])[1]:
        return written + 1
    return written


def turns(folder: Path, line: dict[str, Any]) -> tuple[int, bool]:
    """Finished turns of a batch, and whether they are all that its line of metrics counts."""
    number = line.get("critic_batch")
    name = f"{line['step']:05d}" if number is None else f"critic_{number:05d}"
    path = folder / "journal" / f"{name}.jsonl"
    try:
        text = path.read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return 0, False
    nodes = [json.loads(entry)["node"] for entry in text.splitlines()]
    return len(nodes), sum(len(node["tokens"]) for node in nodes) == line["sampled_tokens"]


def in_flight(folder: Path, lines: list[dict[str, Any]]) -> str:
    """What a killed run was doing, from what it left."""
    if list(folder.glob("checkpoints/*.partial")):
        return "a checkpoint, half written"
    written = written_lines(folder)
    if written == len(lines):
        return "the measurement at the end"
    if written == 0 and not (folder / "journal").exists():
        return "the start"
    line = lines[written]
    what = f"critic batch {n}" if (n := line.get("critic_batch")) else f"step {line['step']}"
    count, all_of_them = turns(folder, line)
    if all_of_them:
        return f"update of {what}"
    return f"sampling of {what}, {count} turns" if count else f"before {what}"


def written_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("kill", "case", "after, s", "in flight", "byte-equal")
    for row in rows:
        equal = "yes" if row["equal"] else ", ".join(row["differing"])
        after = f"{row['killed_after_s']:.2f}"
        shown.add_row(str(row["kill"]), row["case"], after, row["in_flight"], equal)
    return shown


def started(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "spanwise", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
