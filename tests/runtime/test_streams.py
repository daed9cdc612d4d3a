"""Output that nobody reads, that finds no room, or that has no letter for what it says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spanwise.runtime.streams import PLAIN, LastingStream, lasting_streams
from tests.viewer.made_runs import make_run

HERE = Path(__file__).parents[2]


def spanwise(*words: str, **options: object) -> subprocess.Popen[bytes]:
    """The command, as it is on the command line; what it prints cannot be held back."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), **options.pop("env", {})}  # type: ignore
    command = [sys.executable, "-m", "spanwise", *words]
    return subprocess.Popen(command, env=environment, cwd=HERE, **options)  # type: ignore


def ascii_stream() -> tuple[io.BytesIO, LastingStream]:
    written = io.BytesIO()
    return written, LastingStream(io.TextIOWrapper(written, encoding="ascii"))


def test_letters_that_the_encoding_lacks_are_written_plainly() -> None:
    written, stream = ascii_stream()
    text = "41.7% \u2192 93.7% \u00b7 AT\u00b2PO \u03bb \U0001f600 \udcff \u2026\n"
    assert stream.write(text) == len(text)
    stream.flush()
    assert written.getvalue() == b"41.7% > 93.7% . AT2PO \\u03bb \\U0001f600 \\udcff ...\n"
    assert all(plain.isascii() and plain.isprintable() for plain in PLAIN.values())
    assert all(len(letter) == 1 and not letter.isascii() for letter in PLAIN)


def test_letters_that_the_encoding_has_stay() -> None:
    written = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(written, encoding="utf-8"))
    stream.write("\u2192 \u03bb \udcff")
    stream.flush()
    assert written.getvalue().decode() == "\u2192 \u03bb \\udcff"


def test_a_reader_that_goes_away_ends_nothing() -> None:
    ends, held = os.pipe()
    with open(held, "w", buffering=1) as file:
        stream = LastingStream(file)
        stream.write("heard\n")
        os.close(ends)
        for _ in range(3):
            stream.write("unheard\n")
            stream.flush()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_a_full_disk_is_said_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with lasting_streams():
            for _ in range(3):
                print("lost", flush=True)
        assert sys.stdout is full
    assert capsys.readouterr().err == (
        "spanwise: nothing more is printed to stdout: No space left on device\n"
    )


def test_a_program_without_streams_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_streams():
        print("nowhere")
        assert sys.stdout is None


@pytest.mark.processes
def test_a_command_goes_on_to_its_end_whatever_becomes_of_its_output(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=1)
    words = ("show", str(tmp_path / "run"))
    with spanwise(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    if os.path.exists("/dev/full"):
        with (
            open("/dev/full", "w") as full,
            spanwise(*words, stdout=full, stderr=subprocess.PIPE) as process,
        ):
            assert process.stderr is not None
            told = process.stderr.read()
            assert process.wait() == 0 and told.count(b"\n") == 1 and b"No space left" in told


@pytest.mark.processes
@pytest.mark.parametrize(
    "words", [("show",), ("compare",), ("--help",), ("view", "--help"), ("x",)]
)
def test_a_terminal_of_ascii_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    make_run(tmp_path / "r\u00fcn\u2192", steps=1)
    make_run(tmp_path / "other", steps=1, seed=1)
    folders = [str(tmp_path / name) for name in ("r\u00fcn\u2192", "other")]
    wanted = {"show": folders[:1], "compare": folders}.get(words[0], [])
    for env in (
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env}
        with spanwise(*words, *wanted, **pipes) as process:
            out, err = process.communicate()
        assert process.returncode == (2 if words == ("x",) else 0), err
        assert b"Traceback" not in err and (out + err).isascii() and out + err
