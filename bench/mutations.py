"""Faults made on purpose, and whether the tests notice: writes ``bench/results/mutations.json``.

Run ``python -m bench.mutations``. Each fault is one replacement in a copy of the sources, in
which the tests of that part are then run; a fault that no test notices ends the script with
an error. Faults in the compiled loops and in the plain torch forms are made apart, and the
tests run with the form that has the fault. Those of the Triton kernel need Triton, and are
left out without it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.mutation_faults import CUDA, FAULTS, Fault
from bench.record import save

ROOT = Path(__file__).parent.parent


def outcome(fault: Fault, folder: Path) -> dict[str, str | bool]:
    """Whether the tests fail with the fault, and the first that does."""
    path = folder / "spanwise" / fault.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault.before) != 1:
        raise SystemExit(f"{fault.name}: the text to replace must occur once in {fault.file}")
    path.write_text(sound.replace(fault.before, fault.after), encoding="utf-8")
    try:
        run = run_tests(fault.tests, folder, kernels=fault.kernels)
    finally:
        path.write_text(sound, encoding="utf-8")
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    return {
        "fault": fault.name,
        "file": f"spanwise/{fault.file}",
        "before": fault.before.strip(),
        "after": fault.after.strip(),
        "caught": run.returncode == 1,  # 1: tests failed; above: they could not be run
        "first_failure": first.group(1) if first else "",
    }


def run_tests(tests: str, folder: Path, *, kernels: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SPANWISE_KERNELS": str(int(kernels)),
    }
    return subprocess.run(
        [*command, *tests.split()], cwd=folder, env=environment, capture_output=True, text=True
    )


def main() -> None:
    faults = FAULTS
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: the faults of its kernel are left out")
        faults = tuple(fault for fault in FAULTS if fault.file != CUDA)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("spanwise", "tests", "bench"):
            left_out = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / part, folder / part, ignore=left_out)
        shutil.copy(ROOT / "pyproject.toml", folder)
        every = " ".join(sorted({f for fault in faults for f in fault.tests.split()}))
        if run_tests(every, folder, kernels=True).returncode != 0:
            raise SystemExit("the tests fail without a fault")
        rows = []
        for fault in faults:
            rows.append(outcome(fault, folder))
            mark = "caught  " if rows[-1]["caught"] else "MISSED  "
            print(mark, fault.name, "|", rows[-1]["first_failure"], flush=True)
    caught = sum(bool(row["caught"]) for row in rows)
    save("mutations", rows, caught=caught, faults=len(rows))
    if caught < len(rows):
        raise SystemExit("some faults went unnoticed")


if __name__ == "__main__":
    main()
