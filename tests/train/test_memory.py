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
from spanwise.train import memory_check as memory


def test_the_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    shipped = Model(path="search_base")
    model = shipped.load()
    assert shipped.num_parameters() == sum(p.numel() for p in model.parameters())
    Qwen3Config(hidden_size=4096, num_hidden_layers=36).save_pretrained(tmp_path)
    assert Model(path=str(tmp_path)).num_parameters() > 5e9  # no weights are there


def test_every_copy_of_the_model_is_counted() -> None:
    at2po, sae = at2po_search(), sae_chain()
    assert memory.run_bytes(at2po, 10) == 160
    assert memory.run_bytes(sae, 10) == 320
    assert memory.run_bytes(replace(sae, critic=ValueHead(trunk="policy")), 10) == 160
    assert memory.run_bytes(replace(at2po, kl=KLPenalty(coefficient=0.1)), 10) == 200
    ahead = replace(at2po, max_off_policy_steps=1, importance=ImportanceCorrection(tis_cap=2.0))
    assert memory.run_bytes(ahead, 10) == 200
    short = replace(at2po, model=Model(dtype="bfloat16"), kl=KLPenalty(coefficient=0.1))
    assert memory.run_bytes(short, 10) == 180
    adapter = Model(dtype="bfloat16", lora=LoRA(rank=8))
    assert memory.run_bytes(replace(sae, model=adapter, kl=KLPenalty(coefficient=0.1)), 10) == 20


def test_processes_share_what_is_split() -> None:
    sae, adapter = sae_chain(), Model(dtype="bfloat16", lora=LoRA(rank=8))
    mesh = cast(Any, object())
    two, many = (Ranks(rank=0, size=size, mesh=mesh) for size in (2, 64))
    assert memory.run_bytes(sae, 10, Ranks(rank=0, size=2)) == 320  # each has all
    assert memory.run_bytes(sae, 10, two) == 40 + 160  # a whole copy to sample from
    assert memory.run_bytes(sae, 10, many) == 80  # two whole copies, until they are split
    assert memory.run_bytes(replace(sae, model=adapter), 10, two) == 40


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = at2po_search()
    needed = memory.run_bytes(config, config.model.num_parameters())
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2 * needed - 1)
    memory.check_memory(config)
    with pytest.raises(ModelError, match=r"GB in 2 processes and .* on cpu"):
        memory.check_memory(config, Ranks(rank=0, size=2, on_this_machine=2))


def test_the_optimizers_state_is_what_is_counted() -> None:
    for dtype in ("float32", "bfloat16"):
        model = Model(dtype=dtype).load()
        optimizer = adamw(model, 1e-6)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        states = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
        held = [t for p in model.parameters() for t in (p, p.grad)]
        total = sum(t.numel() * t.element_size() for t in (*states, *held))
        size = sum(p.numel() for p in model.parameters())
        assert total == memory.BYTES_TRAINED[dtype] * size


def test_available_memory_is_below_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert found is None or found > 0
    monkeypatch.setattr(memory, "_meminfo_bytes", lambda: 7)
    monkeypatch.setattr(memory, "_container_bytes", lambda: 5)
    assert memory.available_bytes(torch.device("cpu")) == 5
    assert memory.available_bytes(torch.device("meta")) is None


def test_a_model_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10_000_000)
    with pytest.raises(ModelError, match=r"training needs at least 0\.0 GB .* on cpu"):
        memory.check_memory(at2po_search())
    memory.check_memory(replace(at2po_search(), model=Model(lora=LoRA(rank=4))))
    folder = tmp_path / "run"
    assert main(["train", "at2po_search", "--folder", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "smaller model, or train an adapter: --model.lora.rank 32 (0.0 GB)" in error
    assert len(error.strip().splitlines()) == 1 and not folder.exists()
