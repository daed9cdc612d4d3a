from __future__ import annotations

import pytest
import torch

from spanwise.models.scoring import token_scores
from tests.tiny import tiny_model


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 12, 4])
    tokens = torch.randint(0, 64, (3, 12), generator=generator)
    inside = torch.arange(12) < lengths[:, None]
    mask = (torch.rand(3, 12, generator=generator) < 0.6) & inside
    mask[:, 0] = False
    return tokens * inside, mask, lengths


def test_equals_a_plain_forward_row_by_row() -> None:
    model = tiny_model(dtype=torch.float64)
    tokens, mask, lengths = rows()
    scores = token_scores(model, tokens, mask, lengths)
    for i, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            logits = model(tokens[i : i + 1, :length]).logits[0]
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
