"""Whole runs with a critic: what they leave behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spanwise.credit import SpanAdvantage
from spanwise.learn.critic import ValueHead, still_rising
from spanwise.models.critic import SeparateCritic
from spanwise.partitions import Delimiter
from spanwise.run.folder import tree_of
from tests.train.letters import LetterModel, letters, run

CRITIC = ValueHead(learning_rate=1e-2, pretraining_steps=3)


def test_a_run_with_a_critic_reports_and_saves_it(tmp_path: Path) -> None:
    log = run(letters(critic=CRITIC), tmp_path)
    metrics = log.read_metrics()
    assert [(m["step"], m.get("critic_batch")) for m in metrics] == [
        *((0, i) for i in (1, 2, 3)),
        (1, None),
        (2, None),
    ]
    summary = log.read_summary()
    explained = [m["explained_variance"] for m in metrics]
    assert summary["pretraining_explained_variance"] == explained[:3]
    assert summary["explained_variance"] == pytest.approx(sum(explained[3:]) / 2)
    assert summary["sampled_tokens"] == sum(m["sampled_tokens"] for m in metrics)
    assert summary["trained_tokens"] == sum(m["trained_tokens"] for m in metrics[3:])
    expected = {"value_loss", "value_gradient_norm", "credit/num_spans", "credit/span_length_mean"}
    assert expected <= metrics[-1].keys()
    assert not {"loss", "gradient_norm"} & metrics[0].keys()  # the policy was frozen

    critic = SeparateCritic(LetterModel().load())
    before = torch.cat([p.flatten() for p in critic.parameters()])
    critic.restore(log.checkpoint_path("final"))
    assert not torch.equal(torch.cat([p.flatten() for p in critic.parameters()]), before)


def test_the_critic_is_fitted_until_it_explains_no_more(tmp_path: Path) -> None:
    critic = replace(CRITIC, pretraining_steps=60)
    history = run(letters(critic=critic, steps=1), tmp_path).read_summary()[
        "pretraining_explained_variance"
    ]
    assert 12 <= len(history) < 60 and not still_rising(history)
    assert all(still_rising(history[:n]) for n in range(len(history)))


def test_recorded_trees_hold_the_critics_values(tmp_path: Path) -> None:
    log = run(letters(critic=CRITIC, advantage=SpanAdvantage(whiten=False, lam=1.0)), tmp_path)
    for record in log.read_trees(2):
        tree = tree_of(record)
        values = [n["value"] for n in record["nodes"][1:]]
        assert max(values) - min(values) < 1e-5  # before the first token, all see the prompt
        assert values[0] != 0
        for node, leaf in zip(record["nodes"][1:], tree.leaves(), strict=True):
            assert leaf.reward is not None
            assert node["advantage"] == pytest.approx(leaf.reward - node["value"], abs=0.5)


def test_the_same_seed_gives_the_same_run_with_a_critic(tmp_path: Path) -> None:
    logs = [run(letters(critic=CRITIC), tmp_path / name) for name in ("a", "b")]
    first, second = (
        [{k: v for k, v in m.items() if not k.startswith("seconds/")} for m in log.read_metrics()]
        for log in logs
    )
    assert first == second
    critics = [(log.checkpoint_path("final") / "critic.safetensors").read_bytes() for log in logs]
    assert critics[0] == critics[1]


def test_a_run_by_delimiter_reads_the_vocabulary(tmp_path: Path) -> None:
    by_letter = SpanAdvantage(spans=Delimiter(text="a"))
    config = letters(advantage=by_letter, steps=1)
    metrics = run(config, tmp_path).read_metrics()[-1]
    assert 1 < metrics["credit/num_spans"] / metrics["branches"] < 3
    with pytest.raises(ValueError, match="delimiter"):
        run(
            replace(config, advantage=SpanAdvantage(spans=Delimiter())),
            tmp_path / "none",
        )
    assert not (tmp_path / "none").exists()  # refused before anything is written


@pytest.mark.parametrize("trunk", ["own", "policy"])
def test_ppo_learns(trunk: str, tmp_path: Path) -> None:
    critic = replace(CRITIC, trunk=trunk)
    summary = run(letters(critic=critic, steps=12), tmp_path).read_summary()
    assert summary["after"]["success"] > summary["before"]["success"] + 0.25
