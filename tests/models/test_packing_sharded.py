"""Packed rows under FSDP: actor and critic in two processes that each hold half of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from spanwise.models.critic import SeparateCritic, SharedCritic, ValueModel
from spanwise.models.lora import LoRA, add_adapter
from spanwise.models.packing import TokenTree, token_tree
from spanwise.models.scoring import token_scores
from spanwise.models.sharding import shard, whole
from tests.models.rows import Rows, random_rows
from tests.tiny import tiny_model

pytestmark = pytest.mark.processes

WORKERS = 2

GRADIENTS = {"own": 24 + 26, "policy": 24 + 4, "own, adapter": 28 + 30}
"""Weights with a gradient by the critic's trunk: of the actor and of the critic itself."""


def actor_and_critic(kind: str) -> tuple[Any, ValueModel]:
    """The same in every process, not split yet."""
    actor = tiny_model(dtype=torch.float64)
    if kind.endswith("adapter"):
        add_adapter(actor, LoRA(rank=2))
        for name, weight in actor.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    critic = SharedCritic(actor, 0.3) if kind == "policy" else SeparateCritic(actor)
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    return actor, critic


def loss(actor: Any, critic: ValueModel, rows: Rows, tree: TokenTree | None) -> Tensor:
    tokens, mask, lengths = rows
    logprobs = token_scores(actor, tokens, mask, lengths, tree).logprobs
    values = critic(tokens, mask, lengths, logprobs.detach(), tree).values
    return logprobs.square().sum() + values.square().sum()


def gradients(actor: torch.nn.Module, critic: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    for part, model in (("actor", actor), ("critic", critic)):
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                yield f"{part}.{name}", whole(weight.grad)


def gradient_errors(kind: str, rank: int, mesh: Any) -> dict[str, float]:
    """Of each trained weight: how far packed and split is from plain rows in one process."""
    actor, critic = actor_and_critic(kind)
    for seed in range(WORKERS):
        loss(actor, critic, random_rows(seed, depth=4), None).backward()
    expected = dict(gradients(actor, critic))

    actor, critic = actor_and_critic(kind)
    shard(actor, mesh)
    if kind != "policy":
        shard(critic, mesh)
    rows = random_rows(rank, depth=4)
    loss(actor, critic, rows, token_tree(rows[0], rows[2])).backward()
    for weight in critic.parameters():
        if kind == "policy":  # a head on the split policy is whole in each process
            assert weight.grad is not None
            dist.all_reduce(weight.grad)
    found = dict(gradients(actor, critic))
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - wanted).abs().max() / wanted.abs().max())
        for name, wanted in expected.items()
    }


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """What each process found, by kind."""
    meet = tmp_path_factory.mktemp("packing") / "meet"
    command = [sys.executable, "-m", "tests.models.test_packing_sharded", str(meet)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    workers = [
        subprocess.Popen(
            [*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        for rank in range(WORKERS)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_under_fsdp_are_those_of_plain_rows(
    errors: list[dict[str, dict[str, float]]], kind: str
) -> None:
    """Each process has a tree of its own; the gradient is that of both."""
    for of_rank in errors:
        assert len(of_rank[kind]) == GRADIENTS[kind]
        assert max(of_rank[kind].values()) < 1e-10, of_rank[kind]


def main(file: str, rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORKERS)
    mesh = init_device_mesh("cpu", (WORKERS,))
    print(json.dumps({kind: gradient_errors(kind, rank, mesh) for kind in GRADIENTS}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
