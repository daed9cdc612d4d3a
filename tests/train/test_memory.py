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
from spanwise.learn.learner import Learner
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.loading import Model, ModelError
from spanwise.models.lora import LoRA
from spanwise.models.sampling_copy import sampling_copy
from spanwise.recipes.chain import sae_chain
from spanwise.recipes.search import at2po_search
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.samplers.vllm.servers import VLLMServers
from spanwise.train import TrainConfig
from spanwise.train import memory_check as memory


def test_the_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    shipped = Model(path="search_base")
    assert shipped.num_parameters() == sum(p.numel() for p in shipped.load().parameters())
    Qwen3Config(hidden_size=4096, num_hidden_layers=36).save_pretrained(tmp_path)
    assert Model(path=str(tmp_path)).num_parameters() > 5e9  # no weights are there


def bytes_after_a_step(config: TrainConfig) -> int:
    """Of every tensor that a run holds: weights, gradients and what the optimizers keep."""
    policy = config.model.load()
    sampled = sampling_copy(policy, None, apart=config.max_off_policy_steps > 0)
    learner = Learner(
        policy,
        advantage=config.advantage,
        critic=config.critic.build(policy, config.model, ALONE),
        kl=config.kl,
    )
    critic = learner.critic
    optimizers = [learner.optimizer] + ([] if critic is None else [critic.optimizer])
    held: list[torch.Tensor] = []
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        held += [t for state in optimizer.state.values() for t in state.values()]
    models = [learner.model, learner.reference, sampled, critic and critic.model]
    for model in models:
        held += [] if model is None else [t for p in model.parameters() for t in (p, p.grad)]
    sizes = {t.data_ptr(): t.numel() * t.element_size() for t in held if t is not None}
    return sum(sizes.values())


SHORT = replace(at2po_search().model, dtype="bfloat16")
KL = KLPenalty(coefficient=0.1)


SHORT, KL = replace(at2po_search().model, dtype="bfloat16"), KLPenalty(coefficient=0.1)
AHEAD = {"max_off_policy_steps": 1, "importance": ImportanceCorrection(tis_cap=2.0)}


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (at2po_search(), 1e-3),
        (sae_chain(), 1e-3),
        (replace(sae_chain(), critic=ValueHead(trunk="policy")), 0.2),  # a head is not counted
        (replace(at2po_search(), kl=KL), 1e-3),
        (replace(at2po_search(), **AHEAD), 1e-3),
        (replace(at2po_search(), model=SHORT, kl=KL), 1e-3),
        (replace(at2po_search(), model=replace(SHORT, lora=LoRA(rank=1)), kl=KL), 0.2),  # nor is it
    ],
    ids=["policy", "critic", "shared trunk", "reference", "ahead", "bfloat16", "adapter"],
)
def test_what_is_counted_is_what_a_run_holds(config: TrainConfig, more: float) -> None:
    counted = memory.run_bytes(config)
    assert counted <= bytes_after_a_step(config) <= (1 + more) * counted


def per_weight(config: TrainConfig, ranks: Ranks) -> float:
    """Bytes for each weight of the policy."""
    return memory.run_bytes(config, ranks) / config.model.num_parameters()


def test_processes_share_what_is_split() -> None:
    two = Ranks(rank=0, size=2, mesh=cast(Any, object()))
    assert per_weight(sae_chain(), Ranks(rank=0, size=2)) == 32  # each has all
    assert per_weight(sae_chain(), two) == 16 + 4  # and a whole copy to sample from
    servers = VLLMServers(urls=("http://127.0.0.1:1",))
    assert per_weight(replace(sae_chain(), sampler=servers), two) == 16


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
