from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from spanwise.errors import SpanwiseError
from spanwise.models.logit_factor import logit_factor
from spanwise.models.scoring import token_scores
from tests.learners import new_learner
from tests.tiny import tiny_model


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 12, 4])
    tokens = torch.randint(0, 64, (3, 12), generator=generator)
    inside = torch.arange(12) < lengths[:, None]
    mask = (torch.rand(3, 12, generator=generator) < 0.6) & inside
    mask[:, 0] = False
    return tokens * inside, mask, lengths


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_equals_a_plain_forward_row_by_row(temperature: float) -> None:
    model = tiny_model(dtype=torch.float64)
    tokens, mask, lengths = rows()
    scores = token_scores(model, tokens, mask, lengths, temperature=temperature)
    for i, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            logits = model(tokens[i : i + 1, :length]).logits[0] / temperature
        logprobs = logits.log_softmax(-1)
        for t in range(12):
            if mask[i, t]:
                expected = logprobs[t - 1, tokens[i, t]]
                entropy = -(logprobs[t - 1].exp() * logprobs[t - 1]).sum()
                torch.testing.assert_close(scores.logprobs[i, t], expected, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(scores.entropies[i, t], entropy, rtol=1e-10, atol=1e-12)
            else:
                assert scores.logprobs[i, t] == 0 and scores.entropies[i, t] == 0


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = tiny_model()
    tokens, mask, lengths = rows()
    scores = token_scores(model, tokens, mask, lengths)
    tokens = torch.where(torch.arange(12) < lengths[:, None], tokens, 63)
    assert torch.equal(scores.logprobs, token_scores(model, tokens, mask, lengths).logprobs)


def test_the_gradient_at_a_temperature() -> None:
    model = tiny_model(dtype=torch.float64)
    tokens, mask, _ = batch = rows()
    of_tokens = torch.randn(mask.shape, dtype=torch.float64)
    of_entropies = torch.randn(mask.shape, dtype=torch.float64)
    scores = token_scores(model, *batch, temperature=0.6)
    total = (of_tokens * scores.logprobs + of_entropies * scores.entropies).sum()
    found = torch.autograd.grad(total, list(model.parameters()))
    logprobs = (model(tokens).logits / 0.6).log_softmax(-1)[:, :-1]
    chosen = logprobs.gather(2, tokens[:, 1:, None]).squeeze(2)
    entropies = -(logprobs.exp() * logprobs).sum(2)
    each = of_tokens[:, 1:] * chosen + of_entropies[:, 1:] * entropies
    expected = torch.autograd.grad(each[mask[:, 1:]].sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_gradient_of_the_entropies() -> None:
    model = tiny_model(dtype=torch.float64)
    batch = rows()
    # against a finite difference, along a random direction of one weight
    weight = model.base_model.layers[0].mlp.up_proj.weight
    direction = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad(token_scores(model, *batch).entropies.sum(), weight)

    def moved(step: float) -> float:
        with torch.no_grad():
            weight.add_(step * direction)
            found = float(token_scores(model, *batch).entropies.sum())
            weight.sub_(step * direction)
        return found

    difference = (moved(1e-3) - moved(-1e-3)) / 2e-3  # its norms work in float32
    assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-3)


SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=16,
    num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, pad_token_id=0,
)  # fmt: skip


def of_kind(kind: str, **more: object) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **more)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "settings", "factor"),
    [
        ("Granite", {"logits_scaling": 6.0}, 1 / 6),
        ("Cohere", {"logit_scale": 0.0625}, 0.0625),
        ("HyperCLOVAX", {"logits_scaling": 4.0}, 4.0),
        ("Llama", {}, 1.0),
    ],
)
def test_what_a_model_does_to_its_logits_is_done_to_them(
    kind: str, settings: dict[str, float], factor: float, dtype: torch.dtype
) -> None:
    model = of_kind(kind, **settings).to(dtype)
    assert logit_factor(model) == pytest.approx(factor, rel=1e-5)
    batch = rows()
    tokens, mask, _ = batch
    with torch.no_grad():
        logprobs = model(tokens).logits.float().log_softmax(-1)[:, :-1]
        found = token_scores(model, *batch).logprobs[:, 1:]
    expected = logprobs.gather(2, tokens[:, 1:, None]).squeeze(2)
    apart = torch.where(mask[:, 1:], expected - found, 0).abs()
    assert float(apart.max()) < (1e-5 if dtype == torch.float32 else 0.1)


def test_a_soft_cap_behind_the_output_layer_is_refused_when_a_learner_is_made() -> None:
    model = of_kind("Gemma2", attn_logit_softcapping=None)
    with pytest.raises(SpanwiseError, match=r"Gemma2ForCausalLM .* soft cap"):
        new_learner(model)


def test_the_first_token_cannot_be_scored() -> None:
    tokens, mask, lengths = rows()
    mask[1, 0] = True
    with pytest.raises(ValueError, match="first token"):
        token_scores(tiny_model(), tokens, mask, lengths)


def test_an_output_layer_that_is_not_linear_is_refused() -> None:
    model = tiny_model()
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    tokens, mask, lengths = rows()
    with pytest.raises(ValueError, match="has a Sequential"):
        token_scores(model, tokens, mask, lengths)
