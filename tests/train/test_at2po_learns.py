"""AT²PO learns: the recipe, on the shipped model, in a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spanwise.display import Display
from spanwise.recipes.search import at2po_search
from spanwise.train import train
from spanwise.train.evaluate import Evaluation


@pytest.mark.slow
def test_a_few_steps_answer_questions_that_were_not_trained_on(tmp_path: Path) -> None:
    """Against their sign, or without it, the credit leaves the greedy success at a half."""
    config = replace(at2po_search(), steps=8, evaluation=Evaluation(num_tasks=100))
    log = train(config, recipe="at2po_search", folder=tmp_path, display=Display())
    before, after = log.read_summary()["before"], log.read_summary()["after"]
    assert before["greedy_success"] < 0.6 and before["success"] < 0.45
    assert after["greedy_success"] > 0.8 and after["success"] > before["success"] + 0.05
