"""Models from folders: precision, how they run, what is refused, what others read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GenerationConfig,
    ViTConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from spanwise.models.critic import SeparateCritic
from spanwise.models.execution import checkpoint_gradients, compile_layers
from spanwise.models.loading import SHIPPED, Model, ModelError
from spanwise.models.logit_factor import logit_factor
from spanwise.models.scoring import token_scores
from tests.models.compiling import on_backend
from tests.tiny import tiny_model

TOKENS = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 7, 4])
MASK = (torch.arange(9) < LENGTHS[:, None]) & (torch.arange(9) >= 2)


def gradients(model: Any, width: int = 9) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    scores = token_scores(
        model, TOKENS[:, :width], MASK[:, :width], LENGTHS.clamp(max=width)
    ).logprobs
    scores.sum().backward()
    return scores.detach(), [p.grad.clone() for p in model.parameters()]


def test_checkpointed_gradients_are_the_same_and_dropout_stays_off() -> None:
    plain, model = tiny_model(), tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    checkpoint_gradients(model)
    calls: list[int] = []
    assert logit_factor(model) == 1  # this runs the model once
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    scores, found = gradients(model)
    assert len(calls) == 2  # forward, and again for the backward pass
    expected_scores, expected = gradients(plain)
    assert torch.equal(scores, expected_scores)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    calls.clear()
    with torch.no_grad():
        token_scores(model, TOKENS, MASK, LENGTHS)
    assert len(calls) == 1


def test_a_critic_runs_as_its_policy_does() -> None:
    policy = tiny_model()
    checkpoint_gradients(policy)
    trunk = SeparateCritic(policy).trunk
    layers = [m for m in trunk.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert all(layer.gradient_checkpointing and layer.training for layer in layers)
    assert not trunk.layers[0].mlp.training


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.compiler)],
)
def test_compiled_layers_say_what_plain_ones_do_at_every_width(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs g++")
    on_backend(backend, monkeypatch)
    plain, model = tiny_model(), tiny_model()
    compile_layers(model)
    for width in (9, 7):
        scores, found = gradients(model, width)
        expected_scores, expected = gradients(plain, width)
        torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    critic = SeparateCritic(model)
    layer = critic.trunk.layers[0]
    assert layer._compiled_call_impl is not None
    assert layer._compiled_call_impl is not model.model.layers[0]._compiled_call_impl
    assert SeparateCritic(plain).trunk.layers[0]._compiled_call_impl is None


def test_layers_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match="the layers of Linear cannot be compiled"):
        compile_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BartConfig(d_model=16), r"is an encoder-decoder model \(bart\); spanwise trains causal"),
        (ViTConfig(), "is a model of the kind vit, of which there is no causal one"),
        (BertConfig(), r"is a bidirectional model \(bert\)"),
    ],
)
def test_other_kinds_of_models_are_refused(config: Any, message: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    model = Model(path=str(tmp_path))
    for use in (model.load, model.num_parameters):
        with pytest.raises(ModelError, match=message) as error:
            use()
        assert len(str(error.value).splitlines()) == 1


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        Model(path=str(tmp_path)).load()
    shutil.copy(SHIPPED / "search_base" / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"cannot load .*safetensors") as error:
        Model(path=str(tmp_path)).load()
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ModelError, match=r"no tokenizer at|no chat template"):
        Model(path=str(tmp_path)).load_tokenizer()


def test_what_is_saved_is_what_others_load(tmp_path: Path) -> None:
    """Weights, tokenizer, chat template and generation settings, as they were."""
    model: Any = Model(path="search_base").load()
    tokenizer = Model(path="search_base").load_tokenizer()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for ours, read in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, read)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other.chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 7
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"


def test_bfloat16_holds_and_computes_in_bfloat16() -> None:
    model = Model(dtype="bfloat16").load()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = token_scores(Model().load(), TOKENS, MASK, LENGTHS).logprobs.detach()
    found = token_scores(model, TOKENS, MASK, LENGTHS).logprobs.detach()
    assert found.dtype == torch.float32
    assert 1e-4 < float((found - exact).abs().max()) < 0.5
