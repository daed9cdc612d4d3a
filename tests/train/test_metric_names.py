"""docs/metrics.md names every metric that runs write, and no other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from spanwise.display import Display
from spanwise.learn.critic import ValueHead
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.recipes.chain import sae_chain
from spanwise.recipes.search import at2po_search
from spanwise.rollout.failures import FailurePolicy
from spanwise.train import TrainConfig, train
from spanwise.train.evaluate import Evaluation
from tests.train.letters import Letters, letters

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
MEASURED = Evaluation(num_tasks=4, every=1)


def searching() -> TrainConfig:
    return replace(at2po_search(), steps=1, prompts_per_step=2, evaluation=MEASURED)


def adding() -> TrainConfig:
    critic = ValueHead(pretraining_steps=1)
    return replace(sae_chain(), steps=1, prompts_per_step=2, evaluation=MEASURED, critic=critic)


def with_all_that_can_be_asked_for() -> TrainConfig:
    return letters(
        kl=KLPenalty(coefficient=0.1),
        importance=ImportanceCorrection(tis_cap=2.0),
        max_off_policy_steps=1,
        dynamic_sampling_rounds=1,
        metrics=(lambda trees, batch: {"trees": len(trees)},),
    )


def failing() -> TrainConfig:
    failures = FailurePolicy(max_excluded=1.0)
    return letters(env=Letters(scored=False), failures=failures, steps=1)


def names_on_the_page() -> dict[str, re.Pattern[str]]:
    """Each metric with the names that it stands for: a word in capitals is any."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row.split("|")[1])]
    assert len(names) == len(set(names))
    return {name: re.compile(re.sub("[A-Z]+", ".+", name)) for name in names}


def test_the_page_names_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    written: set[str] = set()
    for make in (searching, adding, with_all_that_can_be_asked_for, failing):
        folder = tmp_path / make.__name__
        log = train(make(), recipe=make.__name__, folder=folder, display=Display())
        written |= {name for line in log.read_metrics() for name in line}
    page = names_on_the_page()
    assert not [name for name in written if not any(p.fullmatch(name) for p in page.values())]
    assert not [name for name, p in page.items() if not any(p.fullmatch(w) for w in written)]
