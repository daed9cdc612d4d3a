"""The sampler over small HTTP servers: what it asks, and what it refuses before a model is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from spanwise.cli import main
from spanwise.samplers.base import Request, Sampling
from spanwise.samplers.vllm.servers import VLLMServers
from tests.samplers.vllm.fake_server import FakeServer
from tests.tiny import tiny_model
from tests.word_game import CharTokenizer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.die()


def refusal(engine: VLLMServers) -> str:
    with pytest.raises(ValueError) as told:
        engine.check()
    assert "\n" not in str(told.value)
    return str(told.value)


def test_servers_that_cannot_be_used_are_refused_in_one_line(
    server: FakeServer, tmp_path: Path
) -> None:
    VLLMServers(urls=(server.url,)).check()
    assert "--sampler.urls" in refusal(VLLMServers())
    assert "Invalid port: 'one'" in refusal(VLLMServers(urls=("http://localhost:one",)))
    assert "no folder" in refusal(VLLMServers(urls=(server.url,), weights=tmp_path / "no"))
    server.healthy = False
    assert "answers 503" in refusal(VLLMServers(urls=(server.url + "/",)))
    server.healthy, server.missing = True, ("/inference/v1/generate", "/collective_rpc")
    told = refusal(VLLMServers(urls=(server.url,)))
    assert "--enable-scale-out and VLLM_SERVER_DEV_MODE=1" in told
    for urls in (("localhost:8000",), (server.url, server.url)):
        with pytest.raises(ValueError, match="each once"):
            VLLMServers(urls=urls)


def test_a_run_with_a_server_that_is_down_ends_before_it_begins(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.die()
    options = ["--sampler", "servers", "--sampler.urls", server.url, "--model.path", "./missing"]
    assert main(["train", "at2po_search", *options, "--folder", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"vLLM server {server.url} does not answer" in said
    assert not (tmp_path / "run").exists()


def test_turns_and_weights_go_over(server: FakeServer, tokenizer: object, tmp_path: Path) -> None:
    model = tiny_model(vocab=300)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    sampler = VLLMServers(urls=(server.url,), weights=tmp_path).build(model, tokenizer)
    try:
        assert len(server.weights) == 1  # from the start
        request = Request(prompt=(5, 6), seed=7, max_tokens=4, sampling=Sampling(top_k=2))
        completion = asyncio.run(sampler.sample(request))
        assert completion.tokens == (9, 0) and completion.finish == "eos"
        assert completion.engine_logprobs == (-0.5, -0.5)
        assert completion.sampling_logprobs == pytest.approx((-0.474077, -0.474077), abs=1e-6)
        asked = server.turns[0]
        assert asked["token_ids"] == [5, 6] and asked["sampling_params"]["seed"] == 7

        model.model.norm.weight.data.fill_(2.0)
        read: list[float] = []
        server.on_weights = lambda: (read.append(newest(tmp_path)), 200)[1]
        sampler.update_weights(model)
        assert read == [2.0]
        assert len(list(tmp_path.glob("*/*"))) == 1  # the older weights are gone
    finally:
        sampler.close()
    assert not list(tmp_path.iterdir())


def test_closing_ends_the_turns_under_way(server: FakeServer, tokenizer: object) -> None:
    sampler = VLLMServers(urls=(server.url,)).build(tiny_model(vocab=300), tokenizer)
    server.gate.clear()

    async def main() -> None:
        turn = asyncio.ensure_future(sampler.sample(Request(prompt=(5, 6), seed=7, max_tokens=4)))
        while not server.turns:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(sampler.close)
        with pytest.raises((asyncio.CancelledError, RuntimeError)):
            await turn

    try:
        asyncio.run(main())
    finally:
        server.gate.set()
    sampler.close()  # a second time does nothing


def newest(folder: Path) -> float:
    written = max(folder.glob("*/*"), key=lambda path: int(path.name))
    return load_file(written / "model.safetensors")["model.norm.weight"][0].item()


@pytest.mark.processes
def test_several_processes_share_the_servers(server: FakeServer, tmp_path: Path) -> None:
    """All draw by the weights that the first one wrote, whatever their own are called."""
    held: list[bool] = []
    server.on_weights = lambda: (held.append(len(list(tmp_path.glob("*/*"))) > 0), 200)[1]
    torch.multiprocessing.spawn(_one_of_two, (server.url, str(tmp_path)), nprocs=2)
    first, second = sorted(set(server.weights))
    assert server.weights == [first, first, second, second] and all(held)
    salts = sorted(turn["cache_salt"] for turn in server.turns)
    assert salts[0] == salts[1] < salts[2] == salts[3]
    assert not list(tmp_path.glob("spanwise-*"))


def _one_of_two(rank: int, url: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = tiny_model(vocab=300)
    model.config.eos_token_id = 0
    sampler = VLLMServers(urls=(url,), weights=Path(folder)).build(model, CharTokenizer())
    request = Request(prompt=(5, 6), seed=7, max_tokens=4)
    assert asyncio.run(sampler.sample(request)).tokens == (9, 0)
    dist.barrier()
    sampler.update_weights(model)
    assert asyncio.run(sampler.sample(request)).tokens == (9, 0)
    dist.barrier()
    sampler.close()
    dist.destroy_process_group()
