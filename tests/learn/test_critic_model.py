"""A critic that stands on another model than the policy's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config
from transformers import Qwen3ForSequenceClassification as RewardModel

from spanwise import losses
from spanwise.advantages import explained_variance
from spanwise.cli import main
from spanwise.learn.critic import ValueHead
from spanwise.models.critic import CRITIC_FILE
from spanwise.models.loading import SHIPPED, Model, ModelError
from spanwise.models.lora import LoRA, trained_parameters
from spanwise.recipes.chain import sae_chain
from spanwise.run.folder import RunFolder
from spanwise.runtime.distributed import ALONE
from spanwise.train import memory_check as memory

SHAPE = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another architecture and size with the chain task's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "other"
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "chain_base")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_is_fitted_saved_and_read_again(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        *("--critic.path", str(other), "--critic.pretraining-steps", "1", "--steps", "1"),
        *("--prompts-per-step", "4", "--evaluation.num-tasks", "4", "--folder", str(tmp_path)),
    ]
    assert main(["train", "sae_chain", *options]) == 0
    log = RunFolder.open(tmp_path)
    saved = load_file(log.checkpoint_path("final") / CRITIC_FILE)
    start = Qwen2ForCausalLM.from_pretrained(other).model.state_dict()
    assert {n.removeprefix("trunk.") for n in saved} == {"head.weight", "head.bias", *start}
    assert not any(torch.equal(saved[f"trunk.{name}"], start[name]) for name in start)
    assert Model(path=str(log.checkpoint_path("final"))).config().model_type == "qwen3"

    assert main(["eval", str(tmp_path), "--num-tasks", "2"]) == 0
    study = ["--num-prompts", "2", "--num-continuations", "2", "--num-resamples", "5"]
    assert main(["study", "correlation", str(tmp_path), *study]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--critic.path", "search_base"], "search_base has another vocabulary than the policy"),
        (["--critic.path", "./none"], "there is no model folder ./none"),
        (["--critic.betas", "0.9", "1"], "critic.betas must be two numbers in [0, 1), got (0.9, 1"),
        (["--update.betas", "-0.1", "0.9"], "update.betas must be two numbers in [0, 1), got (-0."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "sae_chain", *options, "--folder", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1 and not folder.exists()


def test_the_policys_trunk_has_no_other_model() -> None:
    with pytest.raises(ValueError, match='leave out path="a", or set trunk="own"'):
        ValueHead(trunk="policy", path="a")


def test_a_model_without_an_embedding_for_each_token_is_refused(tmp_path: Path) -> None:
    tokenizer = Model(path="chain_base").load_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(tokenizer) - 1, **SHAPE).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"number {len(tokenizer) - 1}, is not there"):
        Model(path=str(tmp_path)).check_vocabulary(tokenizer)
    Qwen2Config(vocab_size=len(tokenizer) + 9, **SHAPE).save_pretrained(tmp_path)
    Model(path=str(tmp_path)).check_vocabulary(tokenizer)  # rows for more are no harm


def test_a_reward_models_trunk_will_do(tmp_path: Path) -> None:
    """It needs no chat template, and its score head is left behind."""
    tokenizer = Model(path="chain_base").load_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), num_labels=1, head_dim=8, **SHAPE)
    reward = RewardModel(config)
    reward.save_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    policy, head = Model(path="chain_base"), ValueHead(path=str(tmp_path))
    head.check(policy, tokenizer)
    critic = head.build(policy.load(), policy, ALONE).model
    names = dict(reward.model.named_parameters())
    for name, weight in critic.trunk.named_parameters():
        assert torch.equal(weight, names[name])


def test_it_learns_what_its_tokens_are_worth(other: Path) -> None:
    model = Model(path="chain_base")
    critic = ValueHead(path=str(other), learning_rate=1e-2).build(model.load(), model, ALONE)
    tokens = torch.randint(3, 15, (16, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8).expand(16, 8) > 0
    targets = (tokens[:, :1] > 8).float().expand(16, 8)  # the first token decides
    history: list[float] = []
    for _ in range(60):
        values = critic.model(tokens, mask, mask.sum(1) + 1, torch.zeros(16, 8)).values
        per_token = losses.value_loss(values, values.detach(), targets, mask, clip=critic.clip)
        loss = losses.mean_by_token(per_token, mask)
        critic.optimizer.zero_grad()
        loss.backward()
        critic.optimizer.step()
        history.append(explained_variance(values.detach(), targets, mask))
    assert history[0] == 0 and history[-1] > 0.9


def test_it_is_held_as_the_policy_is(other: Path) -> None:
    model = Model(
        path="chain_base", dtype="bfloat16", lora=LoRA(rank=2), gradient_checkpointing=True
    )
    critic = ValueHead(path=str(other)).build(model.load(), model, ALONE).model
    assert critic.trunk.layers[0].gradient_checkpointing
    assert {p.dtype for p in critic.parameters() if not p.requires_grad} == {torch.bfloat16}
    moved = {n for n, p in critic.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in moved)
    assert 0 < len(trained_parameters(critic.trunk)) == len(moved) - 2


def test_its_weights_are_counted(other: Path) -> None:
    config = replace(sae_chain(), critic=ValueHead(path=str(other)))
    size = config.model.num_parameters() + Model(path=str(other)).num_parameters()
    assert memory.run_bytes(config) == 16 * size
    adapted = replace(config, model=replace(config.model, lora=LoRA(rank=2)))
    assert memory.run_bytes(adapted) == 4 * size
