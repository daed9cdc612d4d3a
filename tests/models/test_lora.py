"""Adapters: what moves, what is shared, and what others read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spanwise.cli import main
from spanwise.models.critic import CRITIC_FILE, SeparateCritic
from spanwise.models.loading import SHIPPED, Model, ModelError
from spanwise.models.lora import (
    LoRA,
    add_adapter,
    copy_trainable,
    merged_weights,
    trained_parameters,
)
from spanwise.models.scoring import token_scores
from spanwise.run.folder import RunFolder
from tests.tiny import tiny_model

TOKENS = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 7, 4])
MASK = (torch.arange(9) < LENGTHS[:, None]) & (torch.arange(9) >= 2)


def adapted(*, moved: bool = True, **options: Any) -> Any:
    model = tiny_model()
    add_adapter(model, LoRA(rank=3, **options))
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in trained_parameters(model):
                parameter.normal_(std=0.2)
    return model


def logprobs(model: Any) -> torch.Tensor:
    return token_scores(model, TOKENS, MASK, LENGTHS).logprobs


def test_a_new_adapter_changes_nothing_and_is_the_same_every_time() -> None:
    first = adapted(moved=False)
    plain = tiny_model()
    assert torch.equal(logprobs(first), logprobs(plain))
    for a, b in zip(
        trained_parameters(first), trained_parameters(adapted(moved=False)), strict=True
    ):
        assert torch.equal(a, b)
    model = tiny_model()
    before = torch.get_rng_state()
    add_adapter(model, LoRA(rank=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_adapter_alone_is_trained_on_the_layers_named() -> None:
    model = adapted()
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names and all(".lora_" in name for name in names)
    logprobs(model).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    two = adapted(targets=("q_proj", "v_proj"))
    names = {n.split(".")[4] for n, p in two.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}
    with pytest.raises(ValueError, match=r"names gate; the linear layers .* are down_proj, gate_"):
        adapted(targets=("gate",))


def test_an_own_copy_moves_alone_and_shares_what_is_frozen() -> None:
    model = adapted()
    scores = logprobs(model).detach()
    copied = copy_trainable(model)
    kept = {p.data_ptr() for p in model.parameters()}
    shared = [p.data_ptr() in kept for p in copied.parameters()]
    assert shared == [not p.requires_grad for p in copied.parameters()]
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter.zero_()
    assert torch.equal(logprobs(copied), scores)  # a reference stays where training began
    assert torch.equal(logprobs(model), logprobs(tiny_model()))
    whole = tiny_model()
    assert not {p.data_ptr() for p in copy_trainable(whole).parameters()} & {
        p.data_ptr() for p in whole.parameters()
    }


def test_merged_weights_are_those_of_a_plain_model_with_the_same_log_probs() -> None:
    model = adapted()
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = tiny_model(seed=9)
    merged = dict(merged_weights(model))
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)  # the tied head comes once
    torch.testing.assert_close(logprobs(plain), logprobs(model), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    untouched = tiny_model()
    for name, weight in merged_weights(untouched):
        assert torch.equal(weight, dict(untouched.named_parameters())[name])


def test_of_bfloat16_weights_the_adapter_is_float32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    add_adapter(model, LoRA(rank=2))
    assert {p.dtype for p in trained_parameters(model)} == {torch.float32}
    assert dict(merged_weights(model))["model.norm.weight"].dtype == torch.bfloat16
    assert {w.dtype for _, w in merged_weights(model)} == {torch.bfloat16}


def test_a_critic_of_its_own_shares_the_frozen_weights(tmp_path: Path) -> None:
    model = adapted(moved=False)
    critic = SeparateCritic(model)
    torch.nn.init.normal_(critic.head.weight)
    critic(TOKENS, MASK, LENGTHS, logprobs(model).detach()).values.sum().backward()
    assert all(p.grad is None for p in trained_parameters(model))
    assert all(p.grad is not None for p in trained_parameters(critic))
    save_file(critic.weights(), tmp_path / CRITIC_FILE)
    names = set(load_file(tmp_path / CRITIC_FILE))
    assert all(".lora_" in n or n.startswith("head.") for n in names)
    again = SeparateCritic(model)
    again.restore(tmp_path)
    assert torch.equal(again.head.weight, critic.head.weight)
    with pytest.raises(ModelError, match="another"):
        SeparateCritic(tiny_model()).restore(tmp_path)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank >= 0 and alpha >= 1"):
        LoRA(rank=-1)
    with pytest.raises(ModelError, match="names nope"):
        Model(lora=LoRA(rank=2, targets=("nope",))).load()
    model: Any = Model(lora=LoRA(rank=2)).load()
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match=r"adapter has rank 2, not 4; leave out"):
        Model(path=str(tmp_path / "two"), lora=LoRA(rank=4)).load()
    settings = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    settings["peft_type"] = "IA3"
    (tmp_path / "two" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="of the kind IA3"):
        Model(path=str(tmp_path / "two")).load()


def test_without_peft_a_run_is_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.lora.rank", "2", "--folder", str(tmp_path / "run")]
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["train", "at2po_search", *options]) == 2
    assert capsys.readouterr().err == ('spanwise: LoRA needs peft: pip install "spanwise[lora]"\n')
    assert not (tmp_path / "run").exists()


def by_plain_peft(folder: Path, **settings: Any) -> Path:
    """An adapter of the search base model as peft saves it, without the layers it is put on."""
    base = AutoModelForCausalLM.from_pretrained(SHIPPED / "search_base", dtype=torch.float32)
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    get_peft_model(base, LoraConfig(**settings)).save_pretrained(
        str(folder), save_embedding_layers=False
    )
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "of the kind DoRA"),
        ({"modules_to_save": ["norm"]}, "also has .*norm.modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "also has lm_head.lora_A"),
        ({"target_modules": ["embed_tokens"]}, "also has model.embed_tokens.lora_embedding_A"),
    ],
)
def test_what_cannot_be_merged_for_an_engine_is_refused(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=told):
        Model(path=str(by_plain_peft(tmp_path, **settings))).load()


def test_an_adapter_of_peft_is_loaded_and_one_that_does_not_fit_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = by_plain_peft(tmp_path, use_rslora=True) / "adapter_model.safetensors"
    assert len(trained_parameters(Model(path=str(tmp_path)).load())) == 8
    weights = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    for changed, told in (
        ({n: w for n, w in weights.items() if n != name}, "lacks model.layers.1.self_attn"),
        (
            weights | {name.replace(".1.", ".99."): torch.zeros(1, 2)},
            "no place for model.layers.99",
        ),
        (weights | {name: torch.zeros(3, 2)}, "has weights of other shapes"),
    ):
        save_file(changed, file)
        with pytest.raises(ModelError, match=told):
            Model(path=str(tmp_path)).load()
    for text, told in (("{", "is not JSON"), ("[]", "is no JSON object")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=told):
            Model(path=str(tmp_path)).load()
    assert "REPORT" not in "".join(capfd.readouterr())  # the error is the one line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs") / "lora"
    options = (
        *("--model.lora.rank", "4", "--update.learning-rate", "1e-3", "--kl.coefficient", "0.01"),
        *("--steps", "2", "--prompts-per-step", "4", "--evaluation.num-tasks", "2"),
        *("--rollout.num-chains", "3", "--rollout.num-rounds", "1"),
    )
    assert main(["train", "at2po_search", *options, "--folder", str(folder)]) == 0
    return RunFolder.open(folder)


def test_a_run_moves_the_adapter_alone_and_plain_peft_reads_it(run: RunFolder) -> None:
    first, second = run.read_metrics()
    assert first["engine_mismatch"] < 1e-4 and second["engine_mismatch"] < 1e-4
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-6
    folder = run.checkpoint_path("final")
    assert not list(folder.glob("model*.safetensors"))
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(bool(w.ne(0).any()) for name, w in weights.items() if "lora_B" in name)

    ours: Any = Model(path=str(folder)).load()
    base = AutoModelForCausalLM.from_pretrained(SHIPPED / "search_base", dtype=torch.float32)
    for name, parameter in base.named_parameters():
        owner, _, leaf = name.rpartition(".")
        found = dict(ours.named_parameters())
        assert torch.equal(found.get(name, found.get(f"{owner}.base_layer.{leaf}")), parameter)
    theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        mine, peer = ours(TOKENS).logits, theirs(TOKENS).logits
    torch.testing.assert_close(mine, peer, rtol=1e-6, atol=1e-6)
    with theirs.disable_adapter(), torch.no_grad():
        assert not torch.allclose(theirs(TOKENS).logits, peer, atol=1e-3)


def test_a_run_with_an_adapter_is_evaluated(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run.folder), "--num-tasks", "4"]) == 0
    assert "Held-out success" in capsys.readouterr().out
