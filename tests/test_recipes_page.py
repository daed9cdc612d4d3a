"""The page of recipes is what its script writes, and no recipe is without its sources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import recipes as page_of_recipes
from bench.recipes import COLUMNS, PAGE, SOURCES, page, settings
from spanwise import recipes
from spanwise.errors import SpanwiseError
from spanwise.learn.update import Update
from spanwise.recipes.chain import sae_chain
from spanwise.recipes.math import sae_math
from spanwise.recipes.search import at2po_search_paper
from spanwise.samplers.base import Sampling

LINES = SOURCES.read_text(encoding="utf-8").splitlines()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([line for line in LINES if not line.startswith("gae_chain ")], "differ in gae_chain"),
        ([*LINES, "no_such | paper" + " | ours" * 7], "differ in no_such"),
        ([*LINES, LINES[-1]], "at2po_search_paper needs one line"),
        ([*LINES, "short | paper | ours"], "short needs one line"),
        ([*LINES, "empty | paper |" + " | ours" * 6], "empty needs one line"),
    ],
)
def test_a_recipe_without_its_sources_is_refused(
    lines: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / SOURCES.name
    file.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(page_of_recipes, "SOURCES", file)
    with pytest.raises(SpanwiseError, match=told):
        page()


def test_the_published_settings() -> None:
    """As the papers state them; what they leave open is in the docstrings."""
    assert settings(sae_math()) == {
        "credit": "LowProbability (side start, logprobs engine, threshold 0.2), λ 0.95",
        "ratio": "Token",
        "average": "constant 8192",
        "clip": "0.2 / 0.2",
        "rates": "1e-06, critic 1e-05",
        "batch": "512 × 8; minibatch 512; 1 pass",
        "temperature": "0.6",
    }
    at2po = settings(at2po_search_paper())
    assert at2po["ratio"] == "Turn" and at2po["average"] == "samples"
    assert (at2po["clip"], at2po["temperature"]) == ("0.003 / 0.004", "1")
    assert at2po["batch"] == "64 × 22, forked by entropy; minibatch 8; 1 pass"
    update, rollout = at2po_search_paper().update, at2po_search_paper().rollout
    assert (update.betas, update.weight_decay, update.max_gradient_norm) == ((0.9, 0.999), 0.01, 1)
    assert rollout.max_turn_tokens == rollout.max_response_tokens == 6192
    assert rollout.sampling == Sampling(temperature=1.0, top_p=1.0, top_k=0)
    lams = [
        settings(recipes.find(name)())["credit"] for name in ("vapo_chain", "adaptive_gae_chain")
    ]
    assert lams == ["Token, λ 1 − 1/(0.05 · length)", "Token, λ 1 − 1/(0.2 · length)"]


def test_every_column_follows_its_setting() -> None:
    base = sae_chain()
    changed: dict[str, Any] = {
        "credit": replace(base, advantage=replace(base.advantage, lam=0.5)),
        "ratio": replace(base, objective=replace(base.objective, ratio_spans=base.advantage.spans)),
        "average": replace(base, objective=replace(base.objective, loss_aggregation=7)),
        "clip": replace(base, objective=replace(base.objective, clip_high=0.5)),
        "rates": replace(base, critic=replace(base.critic, learning_rate=7e-3)),
        "batch": replace(base, update=Update(learning_rate=1e-4, epochs=2)),
        "temperature": replace(
            base, rollout=replace(base.rollout, sampling=Sampling(temperature=0.5))
        ),
    }
    assert set(changed) == set(COLUMNS)
    before = settings(base)
    for column, config in changed.items():
        after = settings(config)
        assert [c for c in COLUMNS if after[c] != before[c]] == [column]


@pytest.mark.parametrize("peer", ["verl", "trl"])
def test_every_recipe_was_set_beside_the_peers_and_no_difference_is_unexplained(peer: str) -> None:
    """Run ``python -m bench.peers`` where each is installed once a recipe is new or renamed."""
    rows = json.loads((SOURCES.parent / "results" / f"peers_{peer}.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == recipes.names()
    for row in rows:
        for kind, figures in {"credit": ["credit"], "loss": ["value", "gradient"]}.items():
            apart = [row.get(f"{figure}_difference") for figure in figures]
            if None in apart:
                assert row[kind].startswith("no counterpart: "), row
            else:
                assert max(apart) < 1e-12 or row[f"{kind}_note"], row
