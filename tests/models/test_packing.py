from __future__ import annotations

import itertools
import re
import shutil
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from spanwise.models.critic import SeparateCritic, SharedCritic, ValueModel
from spanwise.models.execution import checkpoint_gradients, compile_layers
from spanwise.models.lora import LoRA, add_adapter
from spanwise.models.packing import (
    TokenTree,
    budget_cuts,
    even_cuts,
    shared_lengths,
    sorted_rows,
    token_tree,
)
from spanwise.models.scoring import token_scores
from spanwise.models.tree_attention import (
    TrunkCost,
    _flex_attention,
    tree_attention,
    why_not_packed,
)
from tests.models.compiling import on_backend
from tests.models.rows import TOLERANCES, Rows, assert_same, random_rows
from tests.tiny import in_precision, tiny_model


def small_vocabulary(seed: int) -> Rows:
    """Rows of three symbols at random: prefixes of one another, and forks at every token."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (12,), generator=draw)
    tokens = torch.randint(0, 3, (12, 8), generator=draw)
    inside = torch.arange(8) < lengths[:, None]
    mask = inside & (torch.rand(12, 8, generator=draw) < 0.7)
    mask[:, 0] = False
    width = int(lengths.max())
    return (tokens * inside)[:, :width], mask[:, :width], lengths


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_token_tree_is_the_trie_of_its_rows(seed: int, depth: int, few: bool) -> None:
    tokens, _, lengths = small_vocabulary(seed) if few else random_rows(seed, depth=depth)
    tree = token_tree(tokens, lengths)
    prefixes = {
        tuple(row[: t + 1])
        for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)
        for t in range(n)
    }
    paths = []
    for number in range(len(tree.tokens)):
        parent = int(tree.parents[number])
        assert parent < number
        before = paths[parent] if parent >= 0 else ()
        assert int(tree.positions[number]) == len(before)
        paths.append((*before, int(tree.tokens[number])))
    assert len(paths) == len(prefixes) and set(paths) == prefixes  # each once
    for row, places, n in zip(tokens.tolist(), tree.index.tolist(), lengths.tolist(), strict=True):
        assert [paths[p] for p in places[:n]] == [tuple(row[: t + 1]) for t in range(n)]
    for q, k in itertools.product(range(len(paths)), repeat=2):
        sees = k <= q < int(tree.ends[k])
        assert sees == (paths[q][: len(paths[k])] == paths[k])


def packed_tokens(tokens: Tensor, lengths: Tensor, part: list[int]) -> int:
    return len(token_tree(tokens[part], lengths[part]).tokens)


def rows_in_order(seed: int) -> tuple[Tensor, Tensor]:
    tokens, _, lengths = random_rows(seed, depth=3, branching=2)
    order = sorted_rows(tokens, lengths)
    return tokens[order], lengths[order]


@given(st.integers(0, 10**6), st.integers(6, 40))
@settings(max_examples=30, deadline=None)
def test_cuts_repeat_as_little_as_any(seed: int, budget: int) -> None:
    """Against all ways of cutting the rows in their order, counted by packing each part."""
    tokens, lengths = rows_in_order(seed)
    n = len(lengths)
    cuts = budget_cuts(shared_lengths(tokens, lengths), lengths, budget=budget)
    assert [i for c in cuts for i in range(c.start, c.stop)] == list(range(n))
    size = {
        (a, b): packed_tokens(tokens, lengths, list(range(a, b)))
        for a in range(n)
        for b in range(a + 1, n + 1)
    }
    allowed = {ab for ab, tokens_ in size.items() if tokens_ <= budget or ab[1] - ab[0] == 1}
    assert all((c.start, c.stop) in allowed for c in cuts)
    least = {0: 0}
    for stop in range(1, n + 1):
        least[stop] = min(least[a] + size[a, stop] for a in range(stop) if (a, stop) in allowed)
    assert sum(size[c.start, c.stop] for c in cuts) == least[n]


def test_one_part_more_costs_less_than_one_token_repeated() -> None:
    shared, lengths = torch.tensor([0, 0, 1, 1, 0]), torch.full((5,), 4)
    # In two parts, row 2 would repeat a token; rows 1 and 4 share nothing with the row above.
    assert budget_cuts(shared, lengths, budget=11) == [slice(0, 1), slice(1, 4), slice(4, 5)]


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_even_cuts_have_the_smallest_largest_part(seed: int, most: int) -> None:
    """Against all ways of cutting the rows in their order, counted by packing each part."""
    tokens, lengths = rows_in_order(seed)
    n = len(lengths)

    def largest(edges: tuple[int, ...]) -> int:
        parts = itertools.pairwise((0, *edges, n))
        return max(packed_tokens(tokens, lengths, list(range(a, b))) for a, b in parts)

    cuts = even_cuts(shared_lengths(tokens, lengths), lengths, most_parts=most)
    assert [i for c in cuts for i in range(c.start, c.stop)] == list(range(n))
    assert len(cuts) <= most
    ways = (e for k in range(min(most, n)) for e in itertools.combinations(range(1, n), k))
    assert largest(tuple(c.start for c in cuts[1:])) == min(map(largest, ways))


def qwen2(**more: Any) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **more))


def llama(**more: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, head_dim=8, **more))


def qwen3(**more: Any) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=1, head_dim=8, **more))


def gpt2(**more: Any) -> Any:
    """Learned positions."""
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **more))


def model_of(build: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = build(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=build is not llama,
    )
    return in_precision(model, dtype)


def outputs_and_gradients(
    model: Any, critic: ValueModel, rows: Rows, packed: bool
) -> dict[str, Tensor]:
    """Log-probs, entropies, values, a loss over all of them and the gradient of every weight."""
    tokens, mask, lengths = rows
    tree = token_tree(tokens, lengths) if packed else None
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(3, *tokens.shape, generator=draw, dtype=torch.float64)
    scores = token_scores(model, tokens, mask, lengths, tree)
    values, end_values = critic(tokens, mask, lengths, scores.logprobs.detach(), tree)
    found = {
        "logprobs": scores.logprobs,
        "entropies": scores.entropies,
        "values": values,
        "end": end_values,
    }
    weights = weights.to(values.dtype)
    loss = (weights[0] * scores.logprobs + weights[1] * scores.entropies).sum()
    loss = loss + (weights[2] * values).square().sum() + end_values.sum()
    parameters = {**dict(model.named_parameters()), **dict(critic.named_parameters())}
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    found |= {"loss": loss} | dict(zip(parameters, gradients, strict=True))
    return {name: tensor.detach() for name, tensor in found.items()}


def critic_of(model: Any, kind: str) -> ValueModel:
    torch.manual_seed(1)
    critic = (
        SeparateCritic(model, reads_surprise=True)
        if kind == "own"
        else SharedCritic(model, 0.3, reads_surprise=True)
    )
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    return critic


@cache
def actor_and_critic(build: Any, kind: str, dtype: torch.dtype) -> tuple[Any, ValueModel]:
    model = model_of(build, dtype)
    return model, critic_of(model, kind)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["own", "policy"])
@pytest.mark.parametrize("build", [qwen3, qwen2, llama, gpt2])
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
def test_packed_equals_rows(
    build: Any, kind: str, dtype: torch.dtype, seed: int, depth: int
) -> None:
    rows = random_rows(seed, depth=depth)
    model, critic = actor_and_critic(build, kind, dtype)
    expected = outputs_and_gradients(model, critic, rows, packed=False)
    found = outputs_and_gradients(model, critic, rows, packed=True)
    assert_same(found, expected, TOLERANCES[dtype])


def gradients(model: Any, rows: Rows, tree: TokenTree | None) -> dict[str, Tensor]:
    """Of the log-probs' squares, for each weight that is trained."""
    loss = token_scores(model, *rows, tree).logprobs.square().sum()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, found, strict=True))


@pytest.mark.parametrize("how", ["checkpointed", "adapter"])
def test_gradient_checkpointing_and_adapters_work_with_it(how: str) -> None:
    model = model_of(qwen3, torch.float64)
    if how == "checkpointed":
        checkpoint_gradients(model)
    else:
        add_adapter(model, LoRA(rank=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)  # it starts at 0
    rows = random_rows(5, depth=4)
    packed = gradients(model, rows, token_tree(rows[0], rows[2]))
    relative = 1e-10 if how == "checkpointed" else 1e-5  # adapters compute in float32
    assert_same(packed, gradients(model, rows, None), relative)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.compiler)])
def test_compiled_layers_are_compiled_once_for_all_trees(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And say what plain ones do; the attention of a tree is not compiled with them."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs g++")
    on_backend(backend, monkeypatch)
    plain, model = model_of(qwen3, torch.float32), model_of(qwen3, torch.float32)
    compile_layers(model)
    num_graphs: list[int] = []
    for seed in range(4):
        rows = random_rows(seed, depth=1 + seed)
        tree = token_tree(rows[0], rows[2])
        found, expected = (gradients(m, rows, tree) for m in (model, plain))
        assert_same(found, expected, 1e-5)
        num_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < num_graphs[0] == num_graphs[-1]


def test_the_mask_for_gpus_is_that_of_ancestors() -> None:
    """Token by token, against the parents; and no block of 128 that is seen is left out."""
    tree = long_tree()
    size = len(tree.tokens)
    assert size > 3 * 128
    expected = torch.zeros(size, size, dtype=torch.bool)
    for q in range(size):
        k = q
        while k >= 0:
            expected[q, k] = True
            k = int(tree.parents[k])
    numbers = torch.arange(size)
    assert torch.equal(tree.sees(numbers[:, None], numbers), expected)
    blocks = torch.nn.functional.pad(expected, (0, -size % 128, 0, -size % 128))
    blocks = blocks.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
    assert not bool(blocks.tril().all())  # some are left out
    assert torch.equal(tree.block_mask.to_dense()[0, 0].bool(), blocks)


def long_tree() -> TokenTree:
    """Eight rows of 100 to 170 tokens that share 60, and two of another prompt."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 64, (10, 170), generator=draw)
    tokens[:8, :60] = tokens[0, :60]
    return token_tree(tokens, torch.randint(100, 171, (10,), generator=draw))


def test_block_sparse_attention_equals_attention_by_blocks() -> None:
    """The form for GPUs, its forward pass, on a CPU."""
    tree = long_tree()
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, len(tree.tokens), 16, generator=draw)
    key, value = torch.randn(2, 1, 2, len(tree.tokens), 16, generator=draw)
    sparse = _flex_attention(query, key, value, tree, 0.25)
    by_block = tree_attention(query, key, value, tree, scale=0.25, dropout=0.0)
    torch.testing.assert_close(sparse, by_block, rtol=1e-5, atol=1e-6)


def test_without_a_tree_the_model_is_what_it_was() -> None:
    rows = random_rows(0, depth=3)
    model, used = tiny_model(), tiny_model()
    token_scores(used, *rows, token_tree(rows[0], rows[2]))
    assert torch.equal(token_scores(used, *rows).logprobs, token_scores(model, *rows).logprobs)


def sliding(**more: Any) -> Any:
    return MistralForCausalLM(MistralConfig(sliding_window=4, num_key_value_heads=2, **more))


def alibi(**more: Any) -> Any:
    return BloomForCausalLM(BloomConfig(n_layer=2, n_head=2, **more))


def state_space(*, num_attention_heads: int, **more: Any) -> Any:
    """It has no heads, whatever their number."""
    return MambaForCausalLM(MambaConfig(state_size=4, **more))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (sliding, "MistralForCausalLM attends within a sliding window"),
        (alibi, "BloomForCausalLM cannot be told where in its row a token stands"),
        (state_space, "MambaForCausalLM has layers of another kind .*: linear_attention"),
    ],
)
def test_models_that_cannot_be_packed_are_told_from_what_they_are(build: Any, reason: str) -> None:
    model, rows = model_of(build, torch.float32), random_rows(0, depth=3)
    assert re.fullmatch(reason, why_not_packed(model) or "")
    with pytest.raises(ValueError, match="rows cannot be packed"):
        token_scores(model, *rows, token_tree(rows[0], rows[2]))


def test_the_cost_of_a_model_is_that_of_its_layers() -> None:
    """Qwen3: four projections of the attention, three of the feed-forward part, the norms."""
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 2 * 8
    layer = attention + 3 * 16 * 32 + 2 * 16
    cost = TrunkCost.of(model_of(qwen3, torch.float32))
    assert cost == TrunkCost(per_token=2 * layer + 16, per_pair=2 * 2 * 16)
    assert TrunkCost.of(model_of(state_space, torch.float32)).per_pair == 0
    assert TrunkCost.of(model_of(gpt2, torch.float32)).per_token > 2 * 8 * 16 * 16
