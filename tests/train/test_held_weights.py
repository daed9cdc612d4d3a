"""What each of two processes holds of split models: its part, and at most one tensor more."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from spanwise.display import Display, TextConsole
from spanwise.learn.critic import NoCritic
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.lora import LoRA, merged_weights
from spanwise.samplers.vllm.servers import VLLMServers
from spanwise.train import TrainConfig, state_files, train
from spanwise.train.checkpoint import CheckpointError
from spanwise.train.config import Checkpoints
from spanwise.train.evaluate import Evaluation
from spanwise.train.state import Run
from spanwise.train.state_files import state_file
from tests.samplers.vllm.fake_server import FakeServer
from tests.train.letters import letters

pytestmark = pytest.mark.processes

NUM_WEIGHTS, NUM_ADAPTERS = 24, 28
"""Weights of the small policy, and of an adapter on it."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the runs of two processes left."""

    folder: Path
    figures: Sequence[dict[str, Any]]
    """What ``counted`` found in each process, by run."""

    served: Sequence[Sequence[dict[str, Tensor]]]
    """The weights that the server was given in each run that has one."""


def configs(url: str = "http://none:1") -> dict[str, TrainConfig]:
    small = {
        "prompts_per_step": 2,
        "evaluation": Evaluation(num_tasks=2),
        "checkpoints": Checkpoints(every=1),
        "kl": KLPenalty(coefficient=0.05),
        # A server says the same whatever it is asked: the entropy alone moves the policy.
        "objective": Objective(entropy_bonus=0.1),
    }
    servers = letters(critic=NoCritic(), sampler=VLLMServers(urls=(url,)), **small)
    adapter = replace(servers, model=replace(servers.model, lora=LoRA(rank=3)))
    return {"embedded": letters(**small), "servers": servers, "servers, adapter": adapter}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder, server = tmp_path_factory.mktemp("held"), FakeServer()
    (folder / "weights").mkdir()
    served: dict[Path, list[dict[str, Tensor]]] = {}

    def on_weights() -> int:
        newest = max(folder.glob("weights/*/*"), key=lambda path: int(path.name))
        served.setdefault(newest.parent, []).append(load_file(newest / "model.safetensors"))
        return 200

    server.on_weights = on_weights
    try:
        torch.multiprocessing.spawn(_one_of_two, (folder, server.url), nprocs=2)
    finally:
        server.die()
    figures = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]
    return Held(folder=folder, figures=figures, served=list(served.values()))


def _one_of_two(rank: int, folder: Path, url: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, config in configs(url).items():
        if isinstance(config.sampler, VLLMServers):
            config = replace(config, sampler=replace(config.sampler, weights=folder / "weights"))
        with counted() as found[name]:
            run(config, folder / name)
    found["full disk"] = of_a_full_disk(configs(url)["embedded"], folder / "full disk", rank)
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def run(config: TrainConfig, folder: Path) -> None:
    train(config, recipe="r", folder=folder, display=Display(TextConsole(quiet=True)))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the gathered tensors that are alive at once, and the whole policies there are."""
    found, alive = {"tensors": 0, "policies": 0}, list[weakref.ref[Tensor]]()
    gathered, updated = DTensor.full_tensor, Run.update_sampler

    def full_tensor(self: DTensor, **options: Any) -> Tensor:
        tensor = gathered(self, **options)
        if tensor.dim():
            alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(tensor)]
            found["tensors"] = max(found["tensors"], len(alive))
        return tensor

    def update_sampler(self: Run) -> None:
        updated(self)
        found["policies"] = whole_policies()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DTensor, "full_tensor", full_tensor)
        patch.setattr(Run, "update_sampler", update_sampler)
        yield found


def whole_policies() -> int:
    """How many policies have weights here that are not split; what shares them counts once."""
    gc.collect()
    policies = [m for m in gc.get_objects() if type(m).__name__.endswith("Qwen3ForCausalLM")]
    weights = [next(policy.parameters()) for policy in policies]
    return len({id(w) for w in weights if not isinstance(w, DTensor) and not w.is_meta})


def of_a_full_disk(config: TrainConfig, folder: Path, rank: int) -> str:
    """What a run says of which the second process cannot write its second part."""
    real, count = state_files.save_file, [0]

    def full(*args: Any) -> None:
        count[0] += 1
        if (count[0], rank) == (2, 1):
            raise OSError(28, "No space left on device")
        real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_files, "save_file", full)
        with pytest.raises(CheckpointError) as told:
            run(config, folder)
    return str(told.value)


@pytest.mark.parametrize("name", list(configs()))
def test_only_the_leader_ever_holds_more_than_one_gathered_tensor(held: Held, name: str) -> None:
    leader, other = (found[name]["tensors"] for found in held.figures)
    assert other == 1
    assert leader >= (NUM_WEIGHTS if name != "servers, adapter" else NUM_ADAPTERS)  # to write them


def test_a_whole_policy_is_held_for_the_embedded_engine_alone(held: Held) -> None:
    for found in held.figures:
        policies = {name: found[name]["policies"] for name in configs()}
        assert policies == {"embedded": 1, "servers": 0, "servers, adapter": 0}


@pytest.mark.parametrize("name", ["embedded", "servers, adapter"])
def test_each_process_writes_its_rows_of_weights_and_moments(held: Held, name: str) -> None:
    checkpoint = held.folder / name / "checkpoints" / "step_00002"
    first, second = (load_file(checkpoint / state_file(rank, 2)) for rank in range(2))
    assert {label.rpartition("/")[2] for label in second} == {"weight", "exp_avg", "exp_avg_sq"}
    for label, tensor in first.items():
        if tensor.dim():
            assert tensor.shape[0] - second[label].shape[0] in (0, 1)
        else:
            assert label.endswith("/step") and label not in second


def test_servers_get_the_weights_of_the_split_policy(held: Held) -> None:
    plain, adapted = held.served
    saved = load_file(held.folder / "servers" / "checkpoints" / "final" / "model.safetensors")
    assert saved.keys() == plain[-1].keys()
    assert all(torch.equal(plain[-1][name], tensor) for name, tensor in saved.items())
    assert not torch.equal(plain[0]["model.norm.weight"], saved["model.norm.weight"])

    model: Any = configs()["servers, adapter"].model.load()
    final = held.folder / "servers, adapter" / "checkpoints" / "final"
    weights = load_file(final / "adapter_model.safetensors")
    prefix = "base_model.model."
    set_peft_model_state_dict(model, {n.removeprefix(prefix): w for n, w in weights.items()})
    merged = dict(merged_weights(model))
    assert merged.keys() == adapted[-1].keys()
    for name, weight in merged.items():
        torch.testing.assert_close(adapted[-1][name], weight, rtol=1e-6, atol=1e-6)
    moved = [n for n, w in adapted[-1].items() if not torch.equal(w, adapted[0][n])]
    assert len(moved) == 14  # every linear layer of two


def test_where_one_process_cannot_write_all_stop_with_its_words(held: Held) -> None:
    first, second = (found["full disk"] for found in held.figures)
    assert first == second and "step_00002: " in first and "No space left on device" in first
    names = [path.name for path in (held.folder / "full disk" / "checkpoints").iterdir()]
    assert names == ["step_00001"]
