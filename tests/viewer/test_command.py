"""``spanwise view`` as a person runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from spanwise.cli import main
from tests.viewer.made_runs import make_run


def test_what_cannot_be_viewed_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", steps=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text('{"schema": 1, "recipe": "at2po_search"}')
    for arguments, told in (
        (["view"], "view RUN [RUN ...]"),
        (["view", str(tmp_path / "missing")], "is no run folder"),
        (["view", str(tmp_path / "old")], "written by spanwise 0.1"),
        (
            ["view", str(tmp_path / "old"), "--export", str(tmp_path / "page.html")],
            "written by spanwise 0.1",
        ),
        (["view", str(tmp_path)], "is no run folder"),
        (["view", str(tmp_path / "run"), str(tmp_path / "run")], "given twice"),
        (["view", str(tmp_path / "run"), "--port", "99999"], "give another --port"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_export_writes_the_file_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    page = tmp_path / "page.html"
    assert main(["view", str(tmp_path / "run"), "--export", str(page)]) == 0
    assert str(page) in capsys.readouterr().out and page.stat().st_size > 50_000


@pytest.mark.processes
def test_it_serves_until_it_is_interrupted_and_loads_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=3)
    script = (
        # Who starts the tests in the background may have Ctrl-C ignored in all that they start.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from spanwise.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    arguments = ["view", str(tmp_path / "run"), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", process.stdout.readline())
        assert address
        with urllib.request.urlopen(address[0] + "api/runs", timeout=10) as answer:
            assert json.load(answer)[0]["name"] == "run"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=10) == 0 and rest.split() == ["False"]
