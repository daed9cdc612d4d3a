from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import spanwise
from spanwise.cli import main
from spanwise.cli.options import configured
from spanwise.cli.parts import KINDS
from spanwise.cli.words import UsageError
from spanwise.credit import SpanAdvantage
from spanwise.learn.critic import ValueHead
from spanwise.lookup import load
from spanwise.models.loading import SHIPPED
from spanwise.partitions import FixedLength, Trajectory
from spanwise.recipes import find
from spanwise.rollout.tree_search import TreeSearch
from spanwise.samplers.base import EngineError
from spanwise.samplers.embedded.engine import TransformersEngine


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("spanwise: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_unknown_names_are_refused_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean at2po_search?" in refused(capsys, "train", "at2po_serch")
    assert "grpo_search" in refused(capsys, "train", "nothing_like_it")
    assert "no command 'trian'" in refused(capsys, "trian")
    assert "the recipes are" in refused(capsys, "train")
    assert "no recipe file" in refused(capsys, "train", "missing.py:recipe")
    assert "missing.py:NAME" in refused(capsys, "train", "missing.py")
    assert "no recipe module nowhere" in refused(capsys, "train", "nowhere.at_all:recipe")
    usage = refused(capsys, "train", "--resume")
    assert "train --resume RUN" in usage and "--option" not in usage  # it takes none
    assert "RUN_OR_MODEL" in refused(capsys, "eval")
    assert "no run folder" in refused(capsys, "show", "nowhere")


@pytest.mark.processes
def test_warnings_are_one_line_each() -> None:
    """Those of spanwise; another's says where it is from."""
    script = (
        "import warnings; from spanwise import cli; cli.main(['--help']);"
        "warnings.warn_explicit('shared tokens are recomputed', UserWarning, cli.__file__, 7);"
        "warnings.warn_explicit('a tensor was copied', UserWarning, '/elsewhere/a.py', 8)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, *_ = run.stderr.splitlines()
    assert first == "spanwise: warning: shared tokens are recomputed"
    assert second.startswith("/elsewhere/a.py:8: UserWarning")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("", "spanwise build-base MODEL"),
        ("train", "sae_chain"),
        ("eval", "--recipe"),
        ("show", "--step"),
        ("view", "--export"),
        ("compare", "--score"),
        ("study", "--num-prompts"),
        ("study correlation", "--num-prompts"),
        ("build-base", "search_base"),
    ],
)
def test_help_needs_no_run_and_no_recipe(
    capsys: pytest.CaptureFixture[str], command: str, told: str
) -> None:
    try:
        assert main([*command.split(), "--help"]) == 0
    except SystemExit as stopped:
        assert stopped.code == 0
    captured = capsys.readouterr()
    assert told in captured.out and not captured.err


def test_a_missing_task_is_refused_before_a_tokenizer_is_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("reasoning_gym")
    nowhere = ["--model.path", "no_such_folder"]
    assert "did you mean countdown" in refused(
        capsys, "train", "sae_gym", "--env.task", "countdwon", *nowhere
    )


def test_what_is_measured_is_a_run_or_a_model_of_the_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--recipe names the recipe" in refused(capsys, "eval", "chain_base")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"schema": 2, "recipe": "sae_chain", "arguments": []}')
    run = str(tmp_path)
    assert "leave out --recipe gae_chain" in refused(capsys, "eval", run, "--recipe", "gae_chain")
    assert "no finished checkpoint yet" in refused(capsys, "eval", run)
    assert "no trees: none were kept" in refused(capsys, "show", run)


@pytest.mark.parametrize(
    "command", ["train --resume", "eval", "show", "view", "compare", "study correlation"]
)
def test_a_run_of_an_older_version_is_refused_in_one_line_that_says_which(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"schema": 1, "recipe": "sae_chain", "arguments": []}')
    said = refused(capsys, *command.split(), str(tmp_path))
    assert "was written by spanwise 0.1 (schema 1)" in said and said.endswith("spanwise 0.1\n")


def test_a_recipe_file_without_that_function_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def recipes():\n    return 1\n")
    refusal = refused(capsys, "train", f"{tmp_path}/mine.py:recipe")
    assert "has no 'recipe'; did you mean recipes? it has recipes" in refusal
    assert "did you mean mine.py?" in refused(capsys, "train", f"{tmp_path}/min.py:recipes")
    assert "returns int, a recipe returns" in refused(
        capsys, "train", f"{tmp_path}/mine.py:recipes"
    )


@pytest.mark.processes
def test_unknown_recipes_are_refused_before_torch_is_loaded() -> None:
    script = (
        "import sys; from spanwise.cli import main; "
        "assert main(['train', 'nope']) == 2; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--rollout.num-chain", "4", "--rollout.num-chains"),
        ("--rollout.choose", "never", "('entropy', 'random')"),
        ("--steps", "many", "--steps"),
    ],
)
def test_unknown_options_and_bad_values_are_refused_with_what_was_meant(
    capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "at2po_search", option, value])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_what_is_refused_is_told_as_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = "a\x1b[2J\x9b31m\u202eb\nspanwise: all is well"
    (tmp_path / harm).mkdir()
    (tmp_path / harm / "config.json").write_text(json.dumps({"schema": harm, "version": harm}))
    for words in (("show",), ("view",), ("compare",), ("train", "--resume")):
        said = refused(capsys, *words, str(tmp_path / harm))
        assert said.rstrip("\n").isprintable() and "a[2J31mb spanwise: all is well" in said
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main([])
    told = warnings.formatwarning(RuntimeWarning(harm), RuntimeWarning, spanwise.__file__, 1)
    assert told.count("\n") == 1 and told.rstrip().isprintable()


def test_values_that_do_not_fit_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    chains = ["--rollout.num-chains", "0"]
    assert "num_chains >= 1" in refused(capsys, "train", "at2po_search", *chains)
    assert "steps and prompts" in refused(capsys, "train", "at2po_search", "--steps", "0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--sampler vlm", "no --sampler 'vlm'; did you mean vllm? there are servers, transf"),
        ("--sampler=vlm", "did you mean vllm?"),
        ("--sampler", "--sampler needs a name: transformers, vllm, servers, FILE.py:CLASS"),
        ("--sampler --steps 3", "--sampler needs a name"),
        ("--sampler= --steps 3", "--sampler needs a name"),
        ("--sampler vllm --steps 3 --sampler=transformers", "--sampler is given twice"),
        ("--objective.ratio_spans tokn", "no --objective.ratio-spans 'tokn'; did you mean token?"),
        ("--critic spanwise.learn.critic:CriticHead", "has no 'CriticHead'; did you mean"),
        ("--critic spanwise.credit:GroupAdvantage", "that is no class of Critics"),
        ("--critic spanwise.learn.critic:Critic", "that is no class of Critics"),
        ("--critic spanwise.learn.critic:still_rising", "that is no class of Critics"),
        ("--env MultiHop", "no --env 'MultiHop'; give one of your own, FILE.py:NAME"),
        ("--advantage span", "SpanAdvantage needs values: give the recipe a critic"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert told in refused(capsys, "train", "at2po_search", *words.split())


@pytest.mark.parametrize(
    "words",
    [
        "--advantage span --advantage.spans fixed_length --advantage.spans.length 3 "
        "--critic value_head",
        "--critic=value_head --advantage.spans.length=3 --advantage.spans=fixed_length "
        "--advantage=span",
        "--advantage.spans.length 3 --critic spanwise.learn.critic:ValueHead --advantage.spans "
        "spanwise.partitions:FixedLength --steps 40 --advantage spanwise.credit:SpanAdvantage",
    ],
)
def test_parts_are_chosen_by_name_in_any_order(words: str) -> None:
    config = configured("grpo_search", words.split())
    advantage = SpanAdvantage(spans=FixedLength(length=3))
    assert config == replace(find("grpo_search")(), advantage=advantage, critic=ValueHead())


def test_a_part_that_the_recipe_has_keeps_the_recipes_settings() -> None:
    config = configured("at2po_search", ["--rollout", "tree_search", "--rollout.num-chains", "3"])
    before = find("at2po_search")().rollout
    assert isinstance(before, TreeSearch) and config.rollout == replace(before, num_chains=3)
    ratio = configured("at2po_search", ["--objective.ratio_spans", "trajectory"]).objective
    assert ratio == replace(find("at2po_search")().objective, ratio_spans=Trajectory())


def test_help_names_the_parts_that_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "sae_chain", "--advantage.spans", "mean_length", "--help"])
    told = capsys.readouterr().out
    assert "--sampler (TransformersEngine): transformers, vllm, servers\n" in told
    assert "--advantage.spans (MeanLength): token, turn, trajectory, low_prob" in told
    assert "--advantage.spans.length" in told and "FILE.py:CLASS" in told


def test_every_kind_that_ships_has_a_name() -> None:
    for base, kinds in KINDS.items():
        module, _, name = base.partition(":")
        bases = getattr(importlib.import_module(module), name)
        named = {load(kind, kinds, "kind") for kind in kinds}
        assert named == {
            kind for kind in subclasses(bases)
            if kind.__module__.startswith("spanwise.") and not kind.__name__.startswith("_")
            and not kind.__module__.startswith(("spanwise.testing.", "spanwise.lookup."))
            and hasattr(sys.modules[kind.__module__], kind.__name__)
        }  # fmt: skip


def subclasses(kind: type) -> set[type]:
    found = {below for kind in kind.__subclasses__() for below in subclasses(kind)}
    return found if inspect.isabstract(kind) else {kind, *found}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_a_run_is_refused_before_there_is_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--sampler", "vllm", "--folder", str(tmp_path / "run")]
    assert "spanwise[vllm]" in refused(capsys, "train", "at2po_search", *options)
    assert not (tmp_path / "run").exists()


def test_an_engine_that_does_not_start_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TransformersEngine, model: object, tokenizer: object) -> None:
        raise EngineError("the engine did not start: no memory")

    monkeypatch.setattr(TransformersEngine, "build", broken)
    assert "no memory" in refused(capsys, "eval", "search_base", "--num-tasks", "2")


def test_models_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(path: str) -> str:
        folder = ["--folder", str(tmp_path / "run")]
        return refused(capsys, "train", "at2po_search", "--model.path", path, *folder)

    assert "there is no model folder ./missing" in train("./missing")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in train("./empty")

    shipped = SHIPPED / "search_base"
    without_template = tmp_path / "without_template"
    shutil.copytree(shipped, without_template)
    (without_template / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((without_template / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (without_template / "tokenizer_config.json").write_text(json.dumps(settings))
    (without_template / "model.safetensors").unlink()  # refused before any weight is read
    assert "no chat template" in train("./without_template")

    without_tags = tmp_path / "without_tags"
    shutil.copytree(shipped, without_tags)
    words = (without_tags / "tokenizer.json").read_text().replace("<search>", "<lookup>")
    (without_tags / "tokenizer.json").write_text(words)
    (without_tags / "model.safetensors").unlink()
    assert "<search>" in train("./without_tags")
    assert not (tmp_path / "run").exists()


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "spanwise train RECIPE" in capsys.readouterr().out


def test_a_base_model_is_built_by_one_command_and_the_same_each_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = [
        *("--fit.num-steps", "3"),
        *("--fit.clean-steps", "2"),
        *("--fit.rows-per-step", "4"),
    ]
    for name in ("one", "two"):
        assert main(["build-base", "search_base", *small, "--folder", str(tmp_path / name)]) == 0
    assert "step 3/3" in capsys.readouterr().out
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert "exists already" in refused(
        capsys, "build-base", "search_base", "--folder", str(tmp_path / "one")
    )
    assert "there are chain_base, search_base, or one of your own" in refused(
        capsys, "build-base", "other_base"
    )
    recipe = "spanwise.recipes.chain:grpo_chain"
    assert "returns TrainConfig, not a BaseModelRecipe" in refused(capsys, "build-base", recipe)


ONES_OWN = """
from __future__ import annotations

from dataclasses import dataclass, replace

from spanwise.credit import GroupAdvantage
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.recipes.search import grpo_search


@dataclass(frozen=True, kw_only=True)
class Scaled(GroupAdvantage):
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Mine(MultiHopSearch):
    level: int = 1


def mine():
    return replace(grpo_search(), advantage=Scaled(), env=Mine())


def nothing():
    return {"steps": 3}
"""


def test_own_classes_have_options_and_a_recipe_must_be_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "ones_own.py"
    file.write_text(ONES_OWN, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["train", f"{file}:mine", "--help"])
    assert stopped.value.code == 0
    assert "--advantage.scale" in (listed := capsys.readouterr().out) and "--env.level" in listed
    assert "returns dict, a recipe returns a TrainConfig" in refused(
        capsys, "train", f"{file}:nothing"
    )


def test_a_recorded_option_of_the_parser_writes_no_file(tmp_path: Path) -> None:
    words = ["--tyro-write-completion", "bash", str(tmp_path / "mine")]
    with pytest.raises(UsageError, match="no setting of a run"):
        configured("grpo_chain", words)
    assert not list(tmp_path.iterdir())
