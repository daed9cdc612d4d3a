from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from spanwise.batch import Batch
from spanwise.credit import GroupAdvantage, TreeAdvantage
from spanwise.errors import SpanwiseError
from spanwise.learn import microbatches
from spanwise.learn.microbatches import Microbatching
from spanwise.learn.objective import Objective
from spanwise.learn.packing_check import packing_fault
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.learn.update import Update
from spanwise.models.critic import SeparateCritic
from spanwise.models.scoring import token_scores
from spanwise.partitions import Token, Trajectory
from spanwise.tree import Tree
from tests.learners import new_learner, scored, trained
from tests.models.rows import TOLERANCES, assert_same
from tests.tiny import tiny_model
from tests.trees import RANDOM_TREES, random_tree

TREES = RANDOM_TREES[:4]
OBJECTIVES = [
    Objective(clip_low=0.2, clip_high=0.28),
    Objective(ratio_spans=Token(), loss_aggregation="token", clip_low=0.2, clip_high=0.28),
    Objective(ratio_spans=Trajectory(), gradient="span", shared_turns="mean"),
    Objective(shared_turns="once", loss_aggregation="token"),
    Objective(ratio_spans=Token(), shared_turns="mean", loss_aggregation=64),
    Objective(shared_turns="sqrt"),
]


def updated(
    trees: list[Tree], objective: Objective, update: Update
) -> tuple[torch.Tensor, dict[str, float]]:
    """All parameters after one update in float64, and the metrics."""
    model = tiny_model(dtype=torch.float64)
    learner = new_learner(model, objective, update, advantage=TreeAdvantage(advantage="over_both"))
    metrics = trained(learner, trees)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


SGD_LIKE = Update(learning_rate=1e-3, prompts_per_minibatch=4, max_gradient_norm=1e9)


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{type(o.ratio_spans).__name__}-{o.shared_turns}"
)
def test_micro_batches_change_memory_and_not_the_result(objective: Objective) -> None:
    whole, figures = updated(TREES, objective, replace(SGD_LIKE, tokens_per_microbatch=10**6))
    for tokens in (1, 40, 100):
        split, other = updated(TREES, objective, replace(SGD_LIKE, tokens_per_microbatch=tokens))
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
        assert other["loss"] == pytest.approx(figures["loss"], abs=1e-6)
        assert other["gradient_norm"] == pytest.approx(figures["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{type(o.ratio_spans).__name__}-{o.shared_turns}"
)
def test_micro_batches_change_no_figure(objective: Objective) -> None:
    """Shares of tokens and of spans alike, of several steps, so that ratios are clipped."""
    update = replace(SGD_LIKE, epochs=3, packing="rows")
    _, figures = updated(TREES, objective, replace(update, tokens_per_microbatch=10**6))
    _, other = updated(TREES, objective, replace(update, tokens_per_microbatch=40))
    assert figures["clip_frac/span_low"] > 0
    del figures["computed_to_total"], other["computed_to_total"]
    assert other == pytest.approx(figures, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES[:3], ids=lambda o: type(o.ratio_spans).__name__)
def test_the_order_of_trees_changes_nothing(objective: Objective) -> None:
    forward, _ = updated(TREES, objective, SGD_LIKE)
    backward, _ = updated(TREES[::-1], objective, SGD_LIKE)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-9)


def test_good_turns_become_likelier_and_bad_ones_less() -> None:
    model = tiny_model()
    batch = Batch.from_trees(TREES)
    advantages = GroupAdvantage()(batch)
    update = Update(learning_rate=3e-3, prompts_per_minibatch=4, epochs=5)
    objective = Objective(ratio_spans=Token(), clip_low=0.2, clip_high=0.28)

    def logprobs() -> torch.Tensor:
        with torch.no_grad():
            return token_scores(model, batch.tokens, batch.mask, batch.lengths).logprobs

    before = logprobs()
    trained(new_learner(model, objective, update), TREES)
    change = logprobs() - before
    assert change[advantages > 0].mean() > 0.01
    assert change[advantages < 0].mean() < -0.01


def test_a_gradient_that_is_not_finite_is_counted_and_not_applied() -> None:
    model = tiny_model()
    batch = Batch.from_trees(TREES)
    before = copy.deepcopy(model.state_dict())
    advantages = GroupAdvantage()(batch)
    advantages[0, batch.mask[0].nonzero()[0]] = float("inf")
    update = Update(learning_rate=1e-3, prompts_per_minibatch=4)
    metrics = trained(new_learner(model, Objective(), update), TREES, advantages)
    assert metrics["skipped_steps"] == 1.0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_loss_that_is_not_finite_is_not_stepped_on_though_its_gradient_is() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Endless(Objective):
        def __call__(self, *rows: Any, **more: Any) -> Any:
            loss, metrics = super().__call__(*rows, **more)
            return loss + math.inf, metrics

    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    metrics = trained(new_learner(model, Endless(), Update(learning_rate=1e-3)), TREES)
    assert metrics["skipped_steps"] == 1.0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_each_epoch_has_a_step_for_each_minibatch_of_prompts() -> None:
    update = Update(prompts_per_minibatch=3, epochs=2)
    learner = new_learner(tiny_model(), Objective(), update)
    trained(learner, TREES)
    steps = {int(state["step"]) for state in learner.optimizer.state.values()}
    assert steps == {4}  # 2 epochs of 3 + 1 prompts


class TestPacking:
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def whatever_it_costs(cls) -> Iterator[None]:
        """For a model as small as this, rows are the faster way."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(microbatches, "MIN_PACKING_GAIN", math.inf)
            yield

    @pytest.mark.parametrize(
        "objective", OBJECTIVES, ids=lambda o: f"{type(o.ratio_spans).__name__}-{o.shared_turns}"
    )
    def test_packing_changes_time_and_not_the_result(self, objective: Objective) -> None:
        packed, figures = updated(TREES, objective, SGD_LIKE)
        rows, other = updated(TREES, objective, replace(SGD_LIKE, packing="rows"))
        torch.testing.assert_close(packed, rows, rtol=0, atol=1e-9)
        assert figures.pop("packed") == 1 and other.pop("packed") == 0
        assert figures.pop("computed_to_total") < 1 <= other.pop("computed_to_total")
        assert figures == pytest.approx(other, rel=1e-9, abs=1e-9)

    @pytest.mark.parametrize("dtype", TOLERANCES)
    @given(seed=st.integers(0, 10**6))
    @settings(max_examples=5, deadline=None)
    def test_the_reference_and_its_penalty_are_those_of_rows(
        self, dtype: torch.dtype, seed: int
    ) -> None:
        """Its log-probs against each row by itself, and every gradient of a KL in the loss."""
        trees = [random_tree(seed + i) for i in range(3)]
        batch = Batch.from_trees(trees)
        model, reference = tiny_model(dtype=dtype), tiny_model(seed=1, dtype=dtype)
        found: dict[str, dict[str, torch.Tensor]] = {}
        for packing in ("tree", "rows"):
            update = replace(SGD_LIKE, packing=packing, learning_rate=0.0)
            kl = KLPenalty(coefficient=0.5)
            learner = new_learner(model, OBJECTIVES[1], update, kl=kl)
            learner.reference = reference
            batch = scored(learner, trees)
            assert learner.update(batch, step=1)["packed"] == (packing == "tree")
            found[packing] = {n: p.grad.clone() for n, p in model.named_parameters()}
            found[packing]["reference"] = batch.reference_logprobs
        alone = torch.zeros_like(found["tree"]["reference"])
        for i, n in enumerate(batch.lengths.tolist()):
            row = batch.tokens[i : i + 1, :n], batch.mask[i : i + 1, :n], batch.lengths[i : i + 1]
            alone[i, :n] = token_scores(reference, *row).logprobs[0].detach()
        assert_same(
            {"reference": found["tree"]["reference"]}, {"reference": alone}, TOLERANCES[dtype]
        )
        assert_same(found["tree"], found["rows"], TOLERANCES[dtype])

    def test_a_model_that_cannot_be_packed_is_trained_on_rows(self) -> None:
        model = tiny_model()
        model.config.layer_types = ["full_attention", "sliding_attention"]
        packed = Microbatching(budget=10**4, packed=True)
        with pytest.warns(UserWarning, match="plain rows.*sliding_attention"):
            checked = packed.checked(model, Batch.from_trees(TREES), None)
        assert checked == replace(packed, packed=False)

    def test_a_model_that_ignores_the_tree_is_found_out(self, monkeypatch: Any) -> None:
        model = tiny_model()
        assert trained(new_learner(model), TREES)["packed"] == 1
        forward = model.base_model.forward

        def deaf(*given: Any, token_tree: Any = None, **named: Any) -> Any:
            return forward(*given, **named)

        monkeypatch.setattr(model.base_model, "forward", deaf)
        with pytest.warns(UserWarning, match="other log-probs"):
            assert trained(new_learner(model), TREES)["packed"] == 0

    def test_a_model_without_attention_is_trained_on_rows(self) -> None:
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
        model = MambaForCausalLM(config).eval()
        before = [p.clone() for p in model.parameters()]
        with pytest.warns(UserWarning, match="plain rows.*linear_attention"):
            metrics = trained(new_learner(model, OBJECTIVES[1], SGD_LIKE), TREES)
        assert metrics["packed"] == 0 and metrics["skipped_steps"] == 0
        assert not torch.equal(before[0], next(model.parameters()))

    def test_it_is_said_that_the_critic_cannot_be_packed(self) -> None:
        policy, other = tiny_model(), tiny_model(seed=1)
        other.config.sliding_window, other.config.use_sliding_window = 4, True
        batch = Batch.from_trees(TREES)
        for critic, told in ((SeparateCritic(policy), None), (SeparateCritic(other), "sliding")):
            fault = packing_fault(policy, batch, critic=critic, budget=10**4)
            assert fault is None if told is None else fault and told in fault
        assert fault is not None and fault.startswith("the critic does not run over packed rows")

    @pytest.mark.parametrize("tree", [True, False])
    def test_whatever_a_model_raises_over_packed_rows_rows_are_tried(
        self, tree: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it raises over rows as well is not the packing's fault, and not hidden."""
        model, forward = tiny_model(), Qwen3Model.forward

        def fails(*given: Any, **named: Any) -> Any:
            if tree and "token_tree" not in named:
                return forward(model.base_model, *given, **named)
            raise IndexError("no such layer")

        monkeypatch.setattr(model.base_model, "forward", fails)
        if tree:
            with pytest.warns(
                UserWarning, match=r"plain rows.*packed rows \(IndexError: no such layer"
            ):
                assert trained(new_learner(model), TREES)["packed"] == 0
        else:
            with pytest.raises(IndexError, match="no such layer"):
                trained(new_learner(model), TREES)


@pytest.mark.parametrize(
    ("result", "said"),
    [(torch.zeros(2), r"Wrong returned \[2\], not a tensor of \[N, T\] = "), (None, "NoneType")],
)
def test_credit_of_another_shape_is_refused_by_the_name_of_its_class(
    result: Any, said: str
) -> None:
    class Wrong(GroupAdvantage):
        def __call__(self, batch: Batch) -> torch.Tensor:
            return result

    with pytest.raises(SpanwiseError, match=said):
        new_learner(tiny_model(), advantage=Wrong()).score(TREES)
