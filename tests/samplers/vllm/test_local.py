"""vLLM in process, as far as that goes without vLLM."""

from __future__ import annotations

import inspect
import sys
from multiprocessing import spawn

from spanwise.samplers.vllm.local import _main_module_hidden


def test_processes_that_vllm_starts_do_not_import_the_main_module() -> None:
    main = sys.modules["__main__"]
    with _main_module_hidden():
        assert (
            not {"init_main_from_name", "init_main_from_path"}
            & spawn.get_preparation_data("worker").keys()
        )
        assert inspect.getsource(inspect)  # vLLM reads sources: every module is looked at
    assert sys.modules["__main__"] is main
