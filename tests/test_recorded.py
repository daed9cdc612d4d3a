"""Somebody's run folder is data: what it names is run only if the user names it too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from spanwise.cli import main
from spanwise.cli.recorded import code_in, recorded_start, resume_command, split_allowed
from spanwise.cli.words import UsageError

RECIPE = """
from pathlib import Path
Path({marker!r}).touch()
from spanwise.recipes.chain import grpo_chain as mine
"""


def run_folder(folder: Path, recipe: str, arguments: Sequence[object]) -> Path:
    """What a stranger may send."""
    (folder / "checkpoints" / "final").mkdir(parents=True)
    record = {"schema": 2, "recipe": recipe, "arguments": list(arguments)}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


COMMANDS = ["train --resume", "eval", "study correlation"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["recipe", "part", "metric", "equals"])
def test_code_that_a_folder_names_is_not_run(
    command: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "was_run"
    file = tmp_path / "theirs.py"
    file.write_text(RECIPE.format(marker=str(marker)))
    word = f"{file}:mine"
    recipe, arguments = {
        "recipe": (word, []),
        "part": ("grpo_chain", ["--advantage", word]),
        "metric": ("grpo_chain", ["--metrics", word]),
        "equals": ("grpo_chain", [f"--env={word}"]),
    }[where]
    run = run_folder(tmp_path / "run", recipe, arguments)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([*command.split(), str(run)]) == 2
    said = capsys.readouterr().err
    assert f"put --allow {word} behind the command" in said
    assert main([*command.split(), str(run), "--allow", "other.py:mine"]) == 2
    assert not marker.exists()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_code_that_the_user_names_too_is_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "was_run", tmp_path / "mine.py"
    file.write_text(RECIPE.format(marker=str(marker)))
    run = run_folder(tmp_path / "run", f"{file}:mine", ["--steps", "3"])
    assert recorded_start(run, [f"{file}:mine"]) == (f"{file}:mine", ["--steps", "3"])
    main(["eval", str(run), "--allow", f"{file}:mine"])
    assert marker.exists()


def test_settings_are_shown_before_they_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sampler", "servers", "--sampler.urls", "http://10.0.0.1:8000/\x1b[2J"]
    recorded_start(run_folder(tmp_path / "run", "grpo_chain", words), [])
    said = capsys.readouterr().err
    assert "as recorded: grpo_chain --sampler servers" in said and "10.0.0.1" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_the_parser_are_no_settings(command: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    words = ["--tyro-write-completion", "bash", str(target)]
    assert main([*command.split(), str(run_folder(tmp_path / "run", "grpo_chain", words))]) == 2
    assert target.read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_links_out_of_a_folder_are_refused(command: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "sae_chain", [])
    (tmp_path / "outside").mkdir()
    (run / "study").symlink_to(tmp_path / "outside")
    assert main([*command.split(), str(run)]) == 2
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("record", [{}, {"recipe": 3}, {"recipe": "grpo_chain", "arguments": "x"}])
def test_a_folder_that_does_not_say_how_it_began_is_refused(
    record: dict[str, object], tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", "grpo_chain", [])
    (run / "config.json").write_text(json.dumps({"schema": 2, **record}))
    with pytest.raises(UsageError, match="does not say which recipe"):
        recorded_start(run, [])


def test_what_is_code_and_what_to_type() -> None:
    urls = ["--sampler.urls", "http://a:8000", "--env.instructions", "Answer: yes", "--seed", "1"]
    assert code_in("sae_chain", urls) == []
    assert code_in("pkg.recipes:mine", ["--env", "a.py:B", "--x=a.py:B"]) == [
        "pkg.recipes:mine",
        "a.py:B",
    ]
    command = resume_command(Path("runs/a b"), "a.py:mine", [])
    assert command == "spanwise train --resume 'runs/a b' --allow a.py:mine"
    assert split_allowed(["run", "--allow", "a.py:b", "--seed", "1"]) == (
        ["a.py:b"],
        ["run", "--seed", "1"],
    )
