"""``spanwise train`` and ``spanwise eval``."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spanwise.cli.options import configured, parsed
from spanwise.cli.words import UsageError, split_name, split_target
from spanwise.envs.base import Split
from spanwise.errors import SpanwiseError

if TYPE_CHECKING:
    from spanwise.train.config import TrainConfig


def train_command(arguments: list[str]) -> None:
    """Train, or go on with a run."""
    resume = arguments[:1] == ["--resume"]
    if resume:
        folder, spec, rest, config = _to_resume(arguments[1:])
    else:
        spec, rest = split_name(arguments, "train RECIPE", _recipes())
        config = configured(spec, rest)
        folder = config.folder or _new_folder(spec)

    from spanwise.display import Display, show_results
    from spanwise.runtime.distributed import leave_group
    from spanwise.train import Stopped, train

    display = Display()
    display.console.quiet = not (leads := os.environ.get("RANK", "0") == "0")
    try:
        log = train(
            config, recipe=spec, arguments=rest, folder=folder, display=display, resume=resume
        )
    except Stopped as stopped:
        if leads:
            print(f"spanwise: stopped by {stopped}\ngo on with     {_resume_command(folder)}")
        leave_group()
        raise SystemExit(128 + stopped.number) from stopped
    leave_group()
    if leads:  # one of several processes shows the results of all
        show_results(log, display.console, group_by=config.evaluation.group_by)


def _to_resume(arguments: list[str]) -> tuple[Path, str, list[str], TrainConfig]:
    """The folder of a run, and the recipe, options and configuration it was started with."""
    target, rest = split_target(arguments, "train --resume RUN", options=False)
    if rest:
        raise UsageError(f"a run is resumed as it was started; leave out {' '.join(rest)}")

    from spanwise.run.folder import RunFolder

    record = RunFolder.open(Path(target)).read_config()
    recipe, words = record.get("recipe"), record.get("arguments")
    if not isinstance(recipe, str) or not isinstance(words, list):
        raise UsageError(f"{target}/config.json does not say which recipe it came from")
    words = [str(word) for word in cast("list[Any]", words)]
    return Path(target), recipe, words, configured(recipe, words)


def _resume_command(folder: Path) -> str:
    return f"spanwise train --resume {shlex.quote(str(folder))}"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Answer held-out questions, sampled and greedily."""

    recipe: str | None = None
    """Recipe whose tasks and limits a model is measured with, at2po_search by default; a run has
    its own."""

    num_tasks: int = 300
    """Number of questions, from the beginning of the split."""

    split: Split = "test"
    """Split that the questions are from."""

    seed: int = 0
    """Seed of the sampled answers."""


def eval_command(arguments: list[str]) -> None:
    """Answer the held-out questions of a run or with a model."""
    target, rest = split_target(arguments, "eval RUN_OR_MODEL")
    options = parsed(EvalOptions(), rest, "spanwise eval RUN_OR_MODEL")

    from spanwise.display import Display, scores_table
    from spanwise.rollout.context import RolloutContext
    from spanwise.train.evaluate import measure

    config = _to_measure(target, options.recipe)
    config.sampler.check()
    tokenizer = config.model.load_tokenizer()
    try:
        config.env.check(tokenizer)
    except SpanwiseError as error:
        if config.model.path != target:
            raise
        raise UsageError(f"{error}; --recipe names the recipe that {target} is for") from error
    sampler = config.sampler.build(config.model.load(), tokenizer)
    context = RolloutContext(
        env=config.env,
        sampler=sampler,
        tokenizer=tokenizer,
        seed=options.seed,
        failures=config.failures,
    )
    evaluation = dataclasses.replace(
        config.evaluation, num_tasks=options.num_tasks, split=options.split
    )
    display = Display()
    with display.waiting(f"measuring on {options.num_tasks} tasks, sampled and greedily"):
        measured = measure(context, config.rollout, evaluation)
    sampler.close()
    table = scores_table(measured, title=target, group_by=evaluation.group_by)
    display.console.print(table)


def _to_measure(target: str, recipe: str | None) -> TrainConfig:
    """The configuration of a run with its finished model, or of a recipe with another model."""
    from spanwise.run.folder import RunFolder

    folder = Path(target)
    if not ((folder / "config.json").is_file() and (folder / "checkpoints").is_dir()):
        config, path = configured(recipe or "at2po_search", []), target
    elif recipe is not None:
        raise UsageError(f"{target} is a run and has a recipe already; leave out --recipe {recipe}")
    else:
        log = RunFolder.open(folder)
        record, path = log.read_config(), str(log.checkpoint_path("final"))
        if not Path(path).is_dir():
            raise UsageError(f"{target} has no finished checkpoint yet ({path} is missing)")
        config = configured(record["recipe"], record["arguments"])
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))


def _recipes() -> str:
    """What may stand for RECIPE."""
    from spanwise import recipes

    return (
        f"the recipes are {', '.join(recipes.names())}, or FILE.py:FUNCTION; "
        "RECIPE --help lists the options"
    )


def _new_folder(spec: str) -> Path:
    name = spec.rpartition(":")[2]
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
