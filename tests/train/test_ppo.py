"""PPO with a critic: what each part of the update does, on a random model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from spanwise.batch import Batch
from spanwise.credit import GroupAdvantage, SpanAdvantage
from spanwise.learn.critic import NoCritic, ValueHead, still_rising
from spanwise.learn.learner import Learner
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.update import Update
from spanwise.models.scoring import token_scores
from spanwise.partitions import LowProbability, Token
from spanwise.runtime.distributed import ALONE
from spanwise.train.config import TrainConfig
from spanwise.tree import Tree
from tests.learners import PLAIN, new_learner, scored, trained
from tests.tiny import tiny_model
from tests.train.letters import letters
from tests.trees import RANDOM_TREES, grown, root, truncated, turn

TREES = RANDOM_TREES
ALIKE = [
    Tree(
        task_id=t.task_id,
        nodes=tuple(replace(n, reward=None if n.reward is None else 1.0) for n in t.nodes),
    )
    for t in TREES
]
PPO = Objective(ratio_spans=Token(), loss_aggregation="token", clip_low=0.2, clip_high=0.28)
BIG = Update(learning_rate=1e-3, prompts_per_minibatch=6, max_gradient_norm=1e9)
SAE = SpanAdvantage(spans=LowProbability(threshold=0.6))  # the trees' tokens are likelier than 0.36
OWN = ValueHead(learning_rate=1e-3, pretraining_steps=0)
SHARED = replace(OWN, trunk="policy", trunk_gradient=0.5)


def config(**changes: Any) -> TrainConfig:
    found = letters(objective=PPO, update=BIG, critic=OWN, advantage=SAE)
    return replace(found, **changes)


def stepped(
    settings: TrainConfig, trees: list[Tree] = TREES, *, dtype: torch.dtype = torch.float64
) -> tuple[Learner, dict[str, float]]:
    """One step from random weights; the reference and the critic are not the policy's."""
    model = tiny_model(dtype=dtype)
    learner = of_config(settings, model)
    if learner.reference is not None:
        learner.reference = tiny_model(seed=7, dtype=dtype)
    if learner.critic is not None:
        torch.manual_seed(3)
        torch.nn.init.normal_(learner.critic.model.head.weight, std=0.1)
    return learner, trained(learner, trees)


def of_config(settings: TrainConfig, policy: Any) -> Learner:
    return Learner(
        policy,
        advantage=settings.advantage,
        objective=settings.objective,
        update=settings.update,
        critic=settings.critic.build(policy, settings.model, ALONE),
        kl=settings.kl,
        overlong=settings.overlong,
        max_response_tokens=settings.rollout.max_response_tokens,
    )


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def both(learner: Learner) -> torch.Tensor:
    parts = [weights(learner.model)]
    if learner.critic is not None:
        parts.append(weights(learner.critic.model))
    return torch.cat(parts)


FULL = {
    "own": config(kl=KLPenalty(coefficient=0.1), objective=replace(PPO, entropy_bonus=0.05)),
    "shared": config(
        critic=SHARED,
        kl=KLPenalty(coefficient=0.1, estimator="k3"),
        objective=replace(PPO, entropy_bonus=0.05, loss_aggregation="sample", dual_clip=3.0),
    ),
    "masked": config(critic=SHARED, overlong=Overlong(on_truncation="mask")),
}


@pytest.mark.parametrize("name", FULL)
def test_micro_batches_change_neither_policy_nor_critic(name: str) -> None:
    """A6 for the value loss, the KL penalty and the entropy bonus."""
    whole, figures = stepped(FULL[name])
    for tokens in (1, 50, 150):
        update = replace(BIG, tokens_per_microbatch=tokens)
        split, other = stepped(replace(FULL[name], update=update))
        torch.testing.assert_close(both(split), both(whole), rtol=0, atol=1e-9)
        for figure in ("loss", "value_loss", "value_gradient_norm", "gradient_norm"):
            assert other[figure] == pytest.approx(figures[figure], rel=1e-5)


@pytest.mark.parametrize("name", ["own", "shared"])
def test_the_order_of_trees_changes_neither_policy_nor_critic(name: str) -> None:
    forward, _ = stepped(FULL[name])
    backward, _ = stepped(FULL[name], TREES[::-1])
    torch.testing.assert_close(both(forward), both(backward), rtol=0, atol=1e-9)


CHANGES: dict[str, dict[str, Any]] = {
    "segments": {"advantage": replace(SAE, spans=LowProbability(threshold=0.8))},
    "lam": {"advantage": replace(SAE, lam=0.5)},
    "length_alpha": {"advantage": replace(SAE, length_alpha=1.0)},
    "gamma": {"advantage": replace(SAE, gamma=0.9)},
    "whiten": {"advantage": replace(SAE, whiten=False)},
    "bootstrap": {"overlong": Overlong(on_truncation="bootstrap")},
    "trunk": {"critic": SHARED},
    "trunk_gradient": {"critic": replace(SHARED, trunk_gradient=0.0)},
}
CUT = [truncated(tree, every=2) for tree in TREES]


def test_every_option_of_critic_and_credit_matters_to_the_policy() -> None:
    """No two of these settings give the same policy; those of the loss are in tests/learn."""
    update = replace(BIG, learning_rate=1e-3, epochs=2)
    found = {"plain": weights(stepped(config(update=update), CUT)[0].model)}
    for name, change in CHANGES.items():
        found[name] = weights(stepped(config(update=update, **change), CUT)[0].model)
    names = list(found)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert (found[a] - found[b]).abs().max() > 1e-7, f"{a} and {b} do the same"


def test_a_share_of_0_leaves_the_policy_as_if_there_were_no_critic() -> None:
    update = replace(BIG, epochs=2)
    found: list[torch.Tensor] = []
    for share in (None, 0.0, 0.5):
        model = tiny_model(dtype=torch.float64)
        critic = None
        if share is not None:
            head = replace(SHARED, trunk_gradient=share)
            critic = head.build(model, letters().model, ALONE)
            torch.nn.init.normal_(critic.model.head.weight, std=0.1)
        learner = new_learner(
            model, PPO, update, critic=critic, advantage=PLAIN if critic is None else SAE
        )
        mask = Batch.from_trees(TREES).mask
        advantages = (1 + torch.arange(mask.numel()).view_as(mask) % 3) * mask
        trained(learner, TREES, advantages)
        found.append(weights(model))
    alone, undisturbed, disturbed = found
    assert torch.equal(undisturbed, alone)
    assert (disturbed - alone).abs().max() > 1e-7


def test_every_option_of_the_critics_update_matters() -> None:
    update = replace(BIG, epochs=3, learning_rate=1e-3)
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "critic_lam": {"advantage": replace(SAE, critic_lam=0.5)},
        "learning_rate": {"critic": replace(OWN, learning_rate=2e-3)},
        "betas": {"critic": replace(OWN, betas=(0.9, 0.999))},
        "clip": {"critic": replace(OWN, clip=1e-3)},
    }
    found: dict[str, torch.Tensor] = {}
    for name, change in changes.items():
        learner, _ = stepped(config(update=update, **change), CUT)
        assert learner.critic is not None
        found[name] = weights(learner.critic.model)
        if name != "plain":
            assert (found[name] - found["plain"]).abs().max() > 1e-7, name
    for trunk in ("own", "policy"):
        critic = replace(OWN, trunk=trunk, reads_surprise=True)
        still = replace(critic, learning_rate=0.0)
        moved, start = (
            stepped(config(update=update, critic=each), CUT)[0].critic for each in (critic, still)
        )
        assert moved is not None and start is not None
        reads = [(c.model.inner or c.model.head).weight[:, -3:] for c in (moved, start)]
        assert ((reads[0] - reads[1]).abs().amax(0) > 1e-7).all()  # each figure is fitted
    # the critic's decay is not the policy's
    learner, _ = stepped(config(update=update, advantage=replace(SAE, lam=0.5)), CUT)
    assert learner.critic is not None
    assert torch.equal(weights(learner.critic.model), found["plain"])


def entropy(model: Any, batch: Batch) -> float:
    with torch.no_grad():
        scores = token_scores(model, batch.tokens, batch.mask, batch.lengths)
    return float(scores.entropies[batch.mask].mean())


def test_an_entropy_bonus_spreads_and_a_kl_penalty_holds_back() -> None:
    batch = Batch.from_trees(TREES)
    update = replace(BIG, epochs=20, learning_rate=3e-3)
    nothing = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    model, reference = tiny_model(), tiny_model(seed=7)
    before = entropy(model, batch)
    bonus = replace(PPO, entropy_bonus=1.0)
    trained(new_learner(model, bonus, update), TREES, nothing)
    assert entropy(model, batch) > before + 0.1

    for estimate in ("k2", "k3"):
        model = tiny_model()
        kl = KLPenalty(coefficient=1.0, estimator=estimate)
        learner = new_learner(model, PPO, update, kl=kl)
        learner.reference = reference
        before_it = scored(learner, TREES, nothing)
        learner.update(before_it, step=1)
        assert before_it.old_logprobs is not None and before_it.reference_logprobs is not None
        with torch.no_grad():
            after = token_scores(model, batch.tokens, batch.mask, batch.lengths).logprobs
        distance = (before_it.old_logprobs - before_it.reference_logprobs)[batch.mask].abs().mean()
        assert (after - before_it.reference_logprobs)[batch.mask].abs().mean() < 0.7 * distance


def test_the_reference_stays_where_training_started() -> None:
    settings = config(kl=KLPenalty(coefficient=0.1))
    model = tiny_model()
    learner = of_config(settings, model)
    started = weights(model)
    for step in (1, 2):
        figures = trained(learner, TREES, step=step)
    assert torch.equal(weights(learner.reference), started)
    assert (weights(model) - started).abs().max() > 0 and figures["kl"] > 0
    assert of_config(config(), model).reference is None


def test_without_signal_the_policy_stays_and_the_critic_learns() -> None:
    group = config(critic=NoCritic(), advantage=GroupAdvantage())
    learner, figures = stepped(group, ALIKE)
    assert figures["no_signal"] == 1.0 and "loss" not in figures
    assert torch.equal(weights(learner.model), weights(tiny_model(dtype=torch.float64)))
    # a penalty or a bonus is a signal of its own
    _, figures = stepped(replace(group, kl=KLPenalty(coefficient=0.1)), ALIKE)
    assert "no_signal" not in figures and figures["loss"] != 0
    # every row cut and masked: nothing is trained on
    cut = [truncated(tree) for tree in TREES]
    for critic in (OWN, SHARED):
        learner, figures = stepped(
            config(critic=critic, overlong=Overlong(on_truncation="mask")), cut
        )
        assert figures["no_signal"] == 1.0
        assert torch.equal(weights(learner.model), weights(tiny_model(dtype=torch.float64)))


def test_what_the_critic_explains_is_of_the_rows_that_are_trained_on() -> None:
    learner = of_config(config(overlong=Overlong(on_truncation="mask")), tiny_model())
    torch.nn.init.normal_(learner.critic.model.head.weight, std=0.1)
    batch = learner.score(CUT)
    assert 0 < int(batch.loss_mask.sum()) < int(batch.mask.sum())
    targets = batch.value_targets[batch.loss_mask]
    left = (targets - batch.values[batch.loss_mask]).var() / targets.var()
    explained = learner.update(batch, step=1)["explained_variance"]
    assert explained == pytest.approx(1 - float(left), abs=1e-5)


def test_rows_that_are_masked_out_are_as_if_not_there() -> None:
    """Those left have the same loss as without the others, given the same credit."""
    model = tiny_model(dtype=torch.float64)
    learner = new_learner(model)
    batch = learner.rescore(Batch.from_trees(CUT))
    keep = (~batch.truncated).nonzero().squeeze(1)
    assert 0 < len(keep) < batch.num_rows
    masked = replace(batch, trained=~batch.truncated)
    advantages = torch.randn(batch.tokens.shape, dtype=torch.float64)
    for objective in (
        PPO,
        replace(PPO, loss_aggregation="sample", shared_turns="mean"),
        replace(PPO, shared_turns="sqrt"),
    ):
        with_them = _updated(masked, advantages, objective)
        leaves = [n.path for t in CUT for n in t.leaves()]
        assert len(leaves) == batch.num_rows
        trimmed = [_without_cut_leaves(tree) for tree in CUT]
        alone = learner.rescore(Batch.from_trees([t for t in trimmed if t is not None]))
        width = alone.tokens.shape[1]
        without_them = _updated(alone, advantages[keep][:, :width], objective)
        torch.testing.assert_close(with_them, without_them, rtol=0, atol=1e-12)


def _updated(batch: Batch, advantages: torch.Tensor, objective: Objective) -> torch.Tensor:
    model = tiny_model(dtype=torch.float64)
    learner = new_learner(model, objective, BIG)
    learner.rescore(batch)
    spans, counted = objective.ratio_spans(batch), objective.weights(batch)
    batch = replace(batch, advantages=advantages, ratio_spans=spans, loss_weights=counted)
    learner.update(batch, step=1)
    return weights(model)


def _without_cut_leaves(tree: Tree) -> Tree | None:
    """The tree without its truncated branches; None if none is left."""
    kept = [leaf.path for leaf in tree.leaves() if leaf.stop != "length"]
    nodes = tuple(n for n in tree.nodes if any(p[: len(n.path)] == n.path for p in kept))
    return Tree(task_id=tree.task_id, nodes=nodes) if kept else None


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.5, 0.999)])
def test_a_critic_is_fitted_by_adamw_with_betas_of_its_own(betas: tuple[float, float]) -> None:
    critic = replace(OWN, betas=betas, clip=None)
    learner = of_config(config(critic=critic, update=replace(BIG, epochs=3)), tiny_model())
    assert learner.critic is not None
    torch.nn.init.normal_(learner.critic.model.head.weight, std=0.1)
    by_hand = copy.deepcopy(learner.critic.model)
    optimizer = torch.optim.AdamW(by_hand.parameters(), 1e-3, betas, weight_decay=0.0)
    batch = scored(learner, TREES)
    learner.update(batch, step=1)
    for _ in range(3):
        values = by_hand(batch.tokens, batch.mask, batch.lengths, batch.old_logprobs).values
        optimizer.zero_grad()
        ((values - batch.value_targets)[batch.mask].square().mean() / 2).backward()
        optimizer.step()
    torch.testing.assert_close(weights(learner.critic.model), weights(by_hand), rtol=0, atol=1e-5)


@pytest.mark.parametrize("critic", [OWN, replace(SHARED, trunk_gradient=1.0)])
def test_both_critics_learn_what_decides_the_outcome(critic: ValueHead) -> None:
    """The outcome is known from the first token on; fresh rows are predicted."""
    update = Update(learning_rate=3e-3, prompts_per_minibatch=8)
    settings = config(critic=replace(critic, learning_rate=3e-3), update=update)
    learner = of_config(settings, tiny_model())
    explained = []
    for step in range(60):
        trees = [_decided(step * 16 + i) for i in range(16)]
        batch = Batch.from_trees(trees)
        no_credit = torch.zeros(batch.tokens.shape)
        no_credit[0, batch.mask[0].nonzero()[0]] = 1e-9  # the policy has all but nothing to learn
        explained.append(trained(learner, trees, no_credit, step=step + 1)["explained_variance"])
    assert explained[0] == pytest.approx(0, abs=0.05)
    assert sum(explained[-5:]) / 5 > 0.5


def _decided(seed: int) -> Tree:
    """Two rows of five random tokens; those that begin with a low token are right."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, 20, (2, 5), generator=generator).tolist()
    turns = [turn(i, tokens=row, reward=float(row[0] < 12)) for i, row in enumerate(rows)]
    return grown(root(1, 2), *turns, name=str(seed))


def test_pretraining_fits_the_critic_and_leaves_the_policy() -> None:
    for critic in (OWN, SHARED):
        settings = config(critic=replace(critic, learning_rate=1e-2))
        model = tiny_model()
        learner = of_config(settings, model)
        assert learner.critic is not None
        before, critic_before = weights(model), weights(learner.critic.model)
        first = last = 0.0
        for step in range(30):
            batch = scored(learner, [_decided(i) for i in range(16)])
            figures = learner.fit_critic(batch, step=step)
            first, last = first or figures["value_loss"], figures["value_loss"]
        assert torch.equal(weights(model), before)
        assert (weights(learner.critic.model) - critic_before).abs().max() > 0
        assert last < 0.9 * first


def test_pretraining_stops_when_the_explained_variance_no_longer_rises() -> None:
    rising = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(still_rising(rising[:n]) for n in range(7))
    plateau = [0.5, 0.52, 0.48, 0.49, 0.5, 0.51]
    assert still_rising([*rising, *plateau])  # the newest six are above the six before
    assert not still_rising([*rising, *plateau, *plateau])
    assert still_rising([0.0] * 12)  # it has not begun
    assert not still_rising([0.5] * 6 + [0.4] * 6)


def test_a_critic_and_a_credit_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs values"):
        config(critic=NoCritic())
    with pytest.raises(ValueError, match="reads no values"):
        config(advantage=GroupAdvantage())
    with pytest.raises(ValueError, match="bootstrap"):
        config(
            critic=NoCritic(),
            advantage=GroupAdvantage(),
            overlong=Overlong(on_truncation="bootstrap"),
        )
