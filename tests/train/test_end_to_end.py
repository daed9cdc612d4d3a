"""The whole way, few steps: the shipped model, the embedded world, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spanwise.cli import main
from spanwise.models.loading import SHIPPED
from spanwise.run.folder import RunFolder, tree_of

SMALL = [
    *("--steps", "3"),
    *("--prompts-per-step", "4"),
    *("--evaluation.num-tasks", "12"),
    *("--evaluation.every", "2"),
]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("end to end")]


def run(folder: Path, recipe: str, *options: str) -> RunFolder:
    assert main(["train", recipe, *SMALL, *options, "--folder", str(folder)]) == 0
    return RunFolder.open(folder)


@pytest.fixture(scope="module")
def at2po(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("runs") / "at2po", "at2po_search")


@pytest.mark.parametrize("paid", [0.0, 1.0])
def test_a_run_that_trained_nothing_says_so(
    paid: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "paid.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from spanwise.envs.base import Reply\n"
        "from spanwise.envs.chain import ChainSums\n"
        "from spanwise.recipes.chain import grpo_chain\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Paid(ChainSums):\n"
        "    async def reply(self, task, turns):\n"
        f"        return Reply(stop='end', reward={paid}, success={paid == 1})\n"
        "def all_alike():\n"
        "    return replace(grpo_chain(), env=Paid())\n"
    )
    run(tmp_path / "run", f"{tmp_path / 'paid.py'}:all_alike")
    said = " ".join(capsys.readouterr().out.split())
    every = "every" if paid else "no"
    assert f"nothing was trained in any of 3 steps: {every} branch succeeded; take" in said


def test_the_run_folder_has_all_that_it_should(at2po: RunFolder) -> None:
    summary = at2po.read_summary()
    assert {"recipe", "seed", "before", "after", "train_seconds"} <= summary.keys()
    for when in ("before", "after"):
        assert summary[when]["n"] == 12
        assert 0 <= summary[when]["success"] <= summary[when]["env/f1"] <= 1
        assert -1 <= summary[when]["score"] <= summary[when]["success"]  # -1 for a broken format
        assert 0 <= summary[when]["greedy_success"] <= 1
        assert sum(group["n"] for group in summary[when]["by_group"].values()) == 12
    metrics = at2po.read_metrics()
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert ["eval/greedy_success" in m for m in metrics] == [False, True, False]
    expected = {
        "score", "success", "unforked/score", "unforked/success", "turns", "env/f1",
        "turn_entropy", "gradient_norm", "ratio_mean", "learning_rate",
        "sampled_tokens", "trained_tokens",
        "unique_token_fraction",
        "seconds/rollout", "seconds/update", "engine_mismatch",
    }  # fmt: skip
    assert expected <= metrics[0].keys()
    assert summary["sampled_tokens"] == sum(m["sampled_tokens"] for m in metrics)
    assert summary["trained_tokens"] == sum(m["trained_tokens"] for m in metrics)
    assert summary["row_tokens"] == sum(m["row_tokens"] for m in metrics)
    computed = [m["row_tokens"] * m["computed_to_total"] for m in metrics]
    assert summary["computed_tokens"] == round(sum(computed))
    # Minibatches are trees of one step, and a token that two trees share counts once too.
    assert all(
        m["packed"] == 1 and m["computed_to_total"] <= m["unique_token_fraction"] for m in metrics
    )
    assert metrics[0]["branches"] == 4 * 10 and 0 < metrics[0]["unique_token_fraction"] < 1
    assert metrics[0]["engine_mismatch"] < 1e-4  # the sampler's log-probs are the trainer's


def test_recorded_trees_hold_the_credit_of_every_turn(at2po: RunFolder) -> None:
    for record in at2po.read_trees(1):
        tree = tree_of(record)
        assert len(tree.leaves()) == 10
        for leaf in tree.leaves():
            assert leaf.reward in (-1.0, 0.0, 1.0)
        for node in record["nodes"][1:]:
            assert node["advantage"] == pytest.approx(node["value"], abs=1e-5)  # node_value
            # every token of the turn was given the turn's advantage
            assert node["advantages"] == pytest.approx([node["advantage"]] * len(node["tokens"]))
            # and has the turn's ratio, since the ratio's span is the turn
            assert len(node["entropies"]) == len(node["ratio"]) == len(node["tokens"])
            assert node["ratio"] == pytest.approx([node["ratio"][0]] * len(node["tokens"]))
    ratios = [n["ratio"][0] for r in at2po.read_trees(1) for n in r["nodes"][1:]]
    assert any(abs(ratio - 1) > 1e-5 for ratio in ratios)  # the step moved something


def test_training_moved_the_weights_and_the_checkpoint_has_them(at2po: RunFolder) -> None:
    before = load_file(SHIPPED / "search_base" / "model.safetensors")
    after = load_file(at2po.checkpoint_path("final") / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [not torch.equal(before[k].float(), after[k].float()) for k in before]
    assert all(moved)


def test_the_same_seed_gives_the_same_run(at2po: RunFolder, tmp_path: Path) -> None:
    again = run(tmp_path / "again", "at2po_search")

    def timeless(log: RunFolder) -> list[dict[str, object]]:
        return [
            {k: v for k, v in m.items() if not k.startswith("seconds/")} for m in log.read_metrics()
        ]

    assert timeless(again) == timeless(at2po)
    for step in at2po.tree_steps():
        assert again.trees_path(step).read_bytes() == at2po.trees_path(step).read_bytes()
    weights = "model.safetensors"
    first, second = at2po.checkpoint_path("final"), again.checkpoint_path("final")
    assert (first / weights).read_bytes() == (second / weights).read_bytes()


def test_a_finished_run_is_evaluated_and_shown(
    at2po: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(at2po.folder), "--num-tasks", "8"]) == 0
    assert "Held-out success" in capsys.readouterr().out
    assert main(["show", str(at2po.folder), "--step", "2", "--tree", "1"]) == 0
    assert "step 2, tree 1" in capsys.readouterr().out
    assert main(["show", str(at2po.folder), "--step", "9"]) == 2
    assert "kept are those of 1, 2, 3" in capsys.readouterr().err


def test_the_group_baseline_trains_on_chains(tmp_path: Path) -> None:
    log = run(tmp_path / "grpo", "grpo_search", "--steps", "1")
    (metrics,) = log.read_metrics()
    config = json.loads(log.config_path.read_text())["config"]
    assert config["rollout"]["class"] == "Chains"
    assert metrics["branches"] == 4 * config["rollout"]["num_chains"]


def test_a_recipe_of_ones_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from spanwise.advantages import to_tokens\n"
        "from spanwise.credit import Advantage\n"
        "from spanwise.recipes.search import grpo_search\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Plain(Advantage):\n"
        "    scale: float = 1.0\n"
        "    def __call__(self, batch):\n"
        "        return to_tokens(self.scale * batch.returns, batch.mask)\n"
        "def plain():\n"
        "    return replace(grpo_search(), advantage=Plain())\n"
    )
    log = run(
        tmp_path / "run", f"{tmp_path}/mine.py:plain", "--steps", "1", "--advantage.scale", "2"
    )
    assert log.read_config()["config"]["advantage"] == {"class": "Plain", "scale": 2.0}
    record = log.read_trees(1)[0]
    for node in record["nodes"]:
        if node["reward"] is not None:
            assert node["advantage"] == pytest.approx(2 * node["reward"])
