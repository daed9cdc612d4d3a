"""A run that cannot fit is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Qwen3Config

from spanwise.cli import main
from spanwise.learn.critic import ValueHead
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.optimizer import adamw
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.loading import Model, ModelError
from spanwise.models.lora import LoRA
from spanwise.recipes.chain import sae_chain
from spanwise.recipes.search import at2po_search
from spanwise.runtime.distributed import Ranks
from spanwise.samplers.vllm.local import VLLMEngine
from spanwise.samplers.vllm.servers import VLLMServers
from spanwise.train import TrainConfig
from spanwise.train import memory_check as memory


def test_the_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    shipped = Model(path="search_base")
    assert shipped.num_parameters() == sum(p.numel() for p in shipped.load().parameters())
    Qwen3Config(hidden_size=4096, num_hidden_layers=36).save_pretrained(tmp_path)
    assert Model(path=str(tmp_path)).num_parameters() > 5e9  # no weights are there


def per_weight(config: TrainConfig, ranks: Ranks | None = None) -> float:
    """Bytes for each weight of the policy."""
    needed = memory.run_bytes(config, ranks) if ranks else memory.run_bytes(config)
    return needed / config.model.num_parameters()


def test_every_copy_of_the_model_is_counted() -> None:
    at2po, sae = at2po_search(), sae_chain()
    assert per_weight(at2po) == 16
    assert per_weight(sae) == 32  # a critic with a trunk of its own
    assert per_weight(replace(sae, critic=ValueHead(trunk="policy"))) == 16
    assert per_weight(replace(at2po, kl=KLPenalty(coefficient=0.1))) == 20
    ahead = replace(at2po, max_off_policy_steps=1, importance=ImportanceCorrection(tis_cap=2.0))
    assert per_weight(ahead) == 20
    assert per_weight(replace(ahead, sampler=VLLMEngine())) == 16
    short = replace(at2po.model, dtype="bfloat16")
    assert per_weight(replace(at2po, model=short, kl=KLPenalty(coefficient=0.1))) == 18
    adapter = replace(sae.model, dtype="bfloat16", lora=LoRA(rank=8))
    assert per_weight(replace(sae, model=adapter, kl=KLPenalty(coefficient=0.1))) == 2


def test_processes_share_what_is_split() -> None:
    two = Ranks(rank=0, size=2, mesh=cast(Any, object()))
    assert per_weight(sae_chain(), Ranks(rank=0, size=2)) == 32  # each has all
    assert per_weight(sae_chain(), two) == 16 + 4  # and a whole copy to sample from
    servers = VLLMServers(urls=("http://127.0.0.1:1",))
    assert per_weight(replace(sae_chain(), sampler=servers), two) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_counted_is_what_the_optimizer_holds(dtype: Any) -> None:
    model = Model(dtype=dtype).load()
    optimizer = adamw(model, 1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    held = [t for p in model.parameters() for t in (p, p.grad)]
    total = sum(t.numel() * t.element_size() for t in (*states, *held))
    assert total == memory.TRAINED_BYTES * sum(p.numel() for p in model.parameters())


def test_a_model_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = at2po_search()
    needed = memory.run_bytes(config)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2 * needed - 1)
    memory.check_memory(config)
    with pytest.raises(ModelError, match="is too large"):  # for two processes on one machine
        memory.check_memory(config, Ranks(rank=0, size=2, on_this_machine=2))
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    memory.check_memory(replace(config, model=Model(lora=LoRA(rank=4))))
    folder = tmp_path / "run"
    assert main(["train", "at2po_search", "--folder", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "GB are available on cpu; take a smaller model, or train an adapter:" in error
    assert len(error.strip().splitlines()) == 1 and not folder.exists()
