"""The recipes of the embedded tasks, few steps, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spanwise import recipes
from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.run.folder import RunFolder

SMALL = [
    *("--steps", "2"),
    *("--prompts-per-step", "4"),
    *("--evaluation.num-tasks", "4"),
]
ONE_STEP = ["--steps", "1", "--prompts-per-step", "2", "--evaluation.num-tasks", "2"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain recipes")]


def run(folder: Path, recipe: str, *options: str) -> RunFolder:
    assert main(["train", recipe, *SMALL, *options, "--folder", str(folder)]) == 0
    return RunFolder.open(folder)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs") / "sae"
    return run(folder, "sae_chain", "--critic.pretraining-steps", "2")


def test_sae_chain_leaves_what_a_critic_run_should(sae: RunFolder) -> None:
    summary, metrics = sae.read_summary(), sae.read_metrics()
    assert len(summary["pretraining_explained_variance"]) == 2
    assert summary["explained_variance"] == pytest.approx(
        sum(m["explained_variance"] for m in metrics[2:]) / 2
    )
    lengths = list(map(int, summary["before"]["by_group"]))
    assert max(lengths) >= 10 and lengths == sorted(lengths)  # numbers, not words
    assert (sae.checkpoint_path("final") / "critic.safetensors").is_file()
    assert metrics[-1]["engine_mismatch"] < 1e-4
    assert 1 < metrics[-1]["credit/span_length_mean"] < 100


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("runs") / "grpo", "grpo_chain", *ONE_STEP)


def test_grpo_chain_has_no_critic(grpo: RunFolder) -> None:
    assert "explained_variance" not in grpo.read_summary()
    assert not (grpo.checkpoint_path("final") / "critic.safetensors").exists()


EMBEDDED = {name for name in recipes.names() if name.endswith(("_chain", "_search"))}
ELSEWHERE = {"sae_chain", "grpo_chain", "at2po_search"}


@pytest.mark.parametrize("recipe", sorted(EMBEDDED - ELSEWHERE))
def test_the_other_recipes_train(recipe: str, tmp_path: Path) -> None:
    fitted = hasattr(configured(recipe, []).critic, "pretraining_steps")
    log = run(tmp_path, recipe, *ONE_STEP, *(["--critic.pretraining-steps", "0"] * fitted))
    (metrics,) = log.read_metrics()
    assert metrics["step"] == 1 and metrics["skipped_steps"] == 0 and metrics["gradient_norm"] > 0
    assert log.read_summary()["trained_tokens"] > 0
    assert ("explained_variance" in metrics) == fitted


def test_the_correlation_study_of_a_run(sae: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--num-prompts", "4", "--num-continuations", "2", "--num-resamples", "20"]
    assert main(["study", "correlation", str(sae.folder), *size, "--delimiter", ";"]) == 0
    assert "SAE start" in capsys.readouterr().out
    read = json.loads((sae.folder / "study" / "correlation.json").read_text())
    assert read["recipe"] == "sae_chain" and read["num_prompts"] == 4
    assert "delimiter" in [row["estimator"] for row in read["rows"]]


def test_any_checkpoint_of_a_run_can_be_studied(
    sae: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--num-prompts", "2", "--num-continuations", "2", "--num-resamples", "5"]
    final, last = sae.folder / "of_final", sae.checkpoint_path("step_00002")
    assert main(["study", "correlation", str(sae.folder), *size, "--folder", str(final)]) == 0
    assert main(["study", "correlation", str(last), *size]) == 0
    results = (final, sae.folder / "study" / "step_00002")
    found = [json.loads((folder / "correlation.json").read_text()) for folder in results]
    assert found[0]["rows"] == found[1]["rows"]  # the same weights, both after the last step
    assert [each["checkpoint"] for each in found] == ["final", "step_00002"]
    capsys.readouterr()
    assert main(["study", "correlation", str(last.with_name("step_00009")), *size]) == 2
    assert "step_00009 is missing" in capsys.readouterr().err


def test_results_that_could_not_be_written_are_refused_before_the_study(
    sae: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sae.config_path / "study"  # below a file
    assert main(["study", "correlation", str(sae.folder), "--folder", str(folder)]) == 2
    recorded, error = capsys.readouterr().err.splitlines()
    assert recorded.startswith("as recorded: sae_chain")
    assert f"cannot write the results to {folder}" in error


def test_a_run_without_a_critic_cannot_be_studied(
    grpo: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "correlation", str(grpo.folder)]) == 2
    assert "without a critic" in capsys.readouterr().err
