"""One real server: turns, new weights, a training run, a request that it refuses."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from bench.drawn_turns import first_turns, forward_logprobs
from spanwise.cli import main
from spanwise.models.loading import SHIPPED
from spanwise.run.folder import RunFolder
from spanwise.samplers.base import Completion, EngineError, Request, Sampler, Sampling
from spanwise.samplers.vllm.servers import VLLMServers

pytestmark = pytest.mark.vllm

Together = Callable[[Sampler, list[Request]], list[Completion]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the search base model, started as docs/vllm.md says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(SHIPPED / "search_base"), "--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--enable-scale-out", "--max-logprobs", "-1"),
        *("--worker-extension-cls", "spanwise.samplers.vllm.worker.WeightReload"),
        *("--no-enable-chunked-prefill", "--enforce-eager", "--dtype", "float32"),
        *("--max-num-batched-tokens", "4096"),
    ]
    settings = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url + "/health", timeout=5.0).status_code == 200
    except httpx2.TransportError:
        return False


def test_turns_and_new_weights_are_those_of_the_model(
    server: str, base: tuple[Any, Any], transformers: Sampler, together: Together
) -> None:
    model, tokenizer = base
    sampler = VLLMServers(urls=(server,)).build(model, tokenizer)
    try:
        greedy = first_turns(tokenizer, 40, Sampling(temperature=0.0))
        expected = together(transformers, greedy)
        assert [c.tokens for c in together(sampler, greedy)] == [c.tokens for c in expected]

        changed = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.mul_(1.0 + 0.1 * torch.randn(parameter.shape[-1:]))
        sampler.update_weights(changed)
        asked = [
            *first_turns(tokenizer, 6, Sampling()),
            *first_turns(tokenizer, 6, Sampling(top_k=4)),
        ]
        for request, completion in zip(asked, together(sampler, asked), strict=True):
            forward = forward_logprobs(changed, request, completion)
            assert completion.engine_logprobs == pytest.approx(forward, abs=1e-3)
            tempered = request.sampling.top_k > 0
            assert (completion.sampling_logprobs != completion.engine_logprobs) == tempered
        assert together(sampler, asked) == together(sampler, asked)  # the seeds rule
    finally:
        sampler.close()


def test_at2po_trains_through_a_server(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = [
        *("--sampler", "servers", "--sampler.urls", server),
        *("--steps", "2", "--prompts-per-step", "4", "--folder", str(folder)),
        *("--evaluation.num-tasks", "12", "--evaluation.every", "0"),
    ]
    assert main(["train", "at2po_search", *small]) == 0
    log = RunFolder.open(folder)
    assert [m["branches"] for m in log.read_metrics()] == [40, 40]
    for line in log.read_metrics():  # step 2 draws from weights that step 1 has moved
        assert line["gradient_norm"] > 0 and line["engine_mismatch_max"] < 1e-3
    assert not any(log.read_summary()["failures"].values())


def test_a_request_that_the_server_refuses_is_an_engine_error(
    server: str, base: tuple[Any, Any]
) -> None:
    sampler = VLLMServers(urls=(server,)).build(*base)
    bad = {"token_ids": [5], "sampling_params": {"temperature": -1.0}}
    try:
        with pytest.raises(EngineError, match="answers 4"):
            sampler._loop.call(sampler._pool.ask, "/inference/v1/generate", bad)
    finally:
        sampler.close()
