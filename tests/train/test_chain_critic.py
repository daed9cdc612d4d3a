"""Critics on the chain task itself, fitted to worked chains rather than to sampled ones."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, cast

import pytest

from spanwise.credit import SpanAdvantage
from spanwise.learn.critic import ValueHead
from spanwise.learn.learner import Learner
from spanwise.models.loading import Model
from spanwise.recipes.chain import sae_chain
from spanwise.runtime.distributed import ALONE
from spanwise.toys.chain_demonstrations import ChainDemonstrations
from spanwise.tree import Tree
from tests.trees import grown, root, turn


def worked(seed: int, tokenizer: Any) -> Tree:
    """One chain, right if its last digit is."""
    drawn = ChainDemonstrations().draw(random.Random(seed))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": drawn.question}], add_generation_prompt=True, return_dict=False
    )
    text = drawn.turns[0][0]
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    right = float(text.endswith(f"# {drawn.answer} ."))
    return grown(root(*prompt), turn(0, tokens=tokens, reward=right), name=str(seed))


@pytest.mark.parametrize("trunk", ["own", "policy"])
def test_both_critics_explain_half_of_the_variance(trunk: Any) -> None:
    """Each batch is predicted before it is fitted; the policy is frozen."""
    recipe, model = sae_chain(), Model(path="chain_base")
    policy, tokenizer = model.load(), model.load_tokenizer()
    head = replace(cast(ValueHead, recipe.critic), trunk=trunk)
    advantage = cast(SpanAdvantage, recipe.advantage).bind(tokenizer)
    critic = head.build(policy, model, ALONE)
    update = replace(recipe.update, prompts_per_minibatch=24)
    learner = Learner(policy, advantage=advantage, update=update, critic=critic)
    explained: list[float] = []
    for number in range(12):
        trees = [worked(48 * number + i, tokenizer) for i in range(48)]
        batch = learner.score(trees)
        assert batch is not None
        explained.append(learner.fit_critic(batch, step=-number)["explained_variance"])
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert sum(explained[-4:]) / 4 > 0.5, explained
