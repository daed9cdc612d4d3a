"""What is in the package that is published: all of the library, and no half of its tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.processes
def test_source_and_wheel_hold_the_library_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "copy"
    for name in ("spanwise", "tests"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = "import setuptools.build_meta as b; b.build_sdist('out'); b.build_wheel('out')"
    done = subprocess.run([sys.executable, "-P", "-c", build], cwd=copy, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    library = {str(p.relative_to(copy)) for p in (copy / "spanwise").rglob("*") if p.is_file()}
    (sdist,), (wheel,) = (copy / "out").glob("*.tar.gz"), (copy / "out").glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert library <= names and not [name for name in names if name.startswith("tests")]
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == library
