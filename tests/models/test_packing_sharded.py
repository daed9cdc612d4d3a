"""Packed rows under FSDP: two processes that each hold half of every layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from spanwise.models.packing import token_tree
from spanwise.models.scoring import token_scores
from tests.models.test_packing import random_rows
from tests.tiny import tiny_model

WORKERS = 2


def test_gradients_under_fsdp_are_those_of_plain_rows(tmp_path: Path) -> None:
    """Each process has a tree of its own; FSDP averages their gradients."""
    command = [sys.executable, "-m", "tests.models.test_packing_sharded", str(tmp_path / "meet")]
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
    for output in outputs:
        errors = json.loads(output.splitlines()[-1])
        assert len(errors) == 22 and max(errors.values()) < 1e-10, errors


def sharded_gradient_errors(file: str, rank: int) -> dict[str, float]:
    """Of each weight of the layers: how far packed and sharded is from rows in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORKERS)
    expected = tiny_model(dtype=torch.float64)
    losses = [
        token_scores(expected, *random_rows(seed, depth=4)).logprobs.square().sum()
        for seed in range(WORKERS)
    ]
    (torch.stack(losses).sum() / WORKERS).backward()

    model = tiny_model(dtype=torch.float64)
    mesh = init_device_mesh("cpu", (WORKERS,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    rows = random_rows(rank, depth=4)
    tree = token_tree(rows[0], rows[2])
    token_scores(model, *rows, tree).logprobs.square().sum().backward()
    errors: dict[str, float] = {}
    plain = dict(expected.base_model.layers.named_parameters())
    for name, parameter in model.base_model.layers.named_parameters():
        found, wanted = parameter.grad.full_tensor(), plain[name].grad
        errors[name] = float((found - wanted).abs().max() / wanted.abs().max())
    dist.destroy_process_group()
    return errors


if __name__ == "__main__":
    print(json.dumps(sharded_gradient_errors(sys.argv[1], int(sys.argv[2]))))
