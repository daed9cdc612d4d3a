"""A result names the commit that it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spanwise.runtime import provenance

ROOT = Path(__file__).parents[2]


def test_the_commit_is_that_of_the_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    asked = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout
    found = provenance.commit()
    assert len(found) >= 7 and head.startswith(found)


def test_an_installed_package_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "spanwise" / "runtime" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() == "unknown"
