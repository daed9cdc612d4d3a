"""vLLM in process, as far as that goes without vLLM."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import platform
import sys
from multiprocessing import spawn
from pathlib import Path

import pytest

from spanwise.samplers.vllm.local import _main_module_hidden, _working_folder_hidden


def test_processes_that_vllm_starts_do_not_import_the_main_module() -> None:
    main = sys.modules["__main__"]
    with _main_module_hidden():
        assert (
            not {"init_main_from_name", "init_main_from_path"}
            & spawn.get_preparation_data("worker").keys()
        )
        assert inspect.getsource(inspect)  # vLLM reads sources: every module is looked at
    assert sys.modules["__main__"] is main


@pytest.mark.processes
def test_processes_that_vllm_starts_run_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pickle", "socket", "json"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def started() -> int | None:
        child = multiprocessing.get_context("spawn").Process(target=platform.machine)
        child.start()
        child.join()
        return child.exitcode

    with _main_module_hidden(), _working_folder_hidden():
        assert started() == 0 and not (tmp_path / "taken").exists()
        assert os.environ["PYTHONSAFEPATH"] == "1"  # what they start inherits it
    assert "PYTHONSAFEPATH" not in os.environ
    with _main_module_hidden():
        assert started() == 3 and (tmp_path / "taken").exists()  # as it is without


def test_a_path_that_was_safe_before_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "yes")
    with _working_folder_hidden():
        pass
    assert os.environ["PYTHONSAFEPATH"] == "yes"
