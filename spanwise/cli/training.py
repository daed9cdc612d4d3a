"""``spanwise train`` and ``spanwise eval``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from spanwise import recipes
from spanwise.cli.options import configured, parsed
from spanwise.cli.recorded import recorded_start, resume_command, split_allowed
from spanwise.cli.words import UsageError, split_name, split_target
from spanwise.envs.base import Split
from spanwise.errors import SpanwiseError

if TYPE_CHECKING:
    from spanwise.train.config import TrainConfig


def train_command(arguments: list[str]) -> None:
    """Train, or go on with a run."""
    resume = arguments[:1] == ["--resume"]
    if resume:
        target, spec, rest = _to_resume(arguments[1:])
    else:
        target = None
        there_are = f"the recipes are {', '.join(recipes.names())}, or FILE.py:FUNCTION"
        spec, rest = split_name(
            arguments, "train RECIPE", f"{there_are}; RECIPE --help lists the options"
        )
    config = configured(spec, rest)

    from spanwise.display import Display, show_results
    from spanwise.run.folder import new_folder
    from spanwise.runtime.distributed import leave_group
    from spanwise.train import Stopped, train

    display = Display()
    display.console.quiet = not (leads := os.environ.get("RANK", "0") == "0")
    folder = target or config.folder
    if made := folder is None:
        name = f"{spec.rpartition(':')[2]}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = new_folder(Path("runs") / name) if leads else Path("runs") / name
    try:
        log = train(
            config, recipe=spec, arguments=rest, folder=folder, display=display, resume=resume
        )
    except Stopped as stopped:
        if leads:
            command = resume_command(folder, spec, rest)
            print(f"spanwise: stopped by {stopped}\ngo on with     {command}")
        leave_group()
        raise SystemExit(128 + stopped.number) from stopped
    finally:
        if made and leads:
            with contextlib.suppress(OSError):  # a run that was refused left it empty
                folder.rmdir()
    leave_group()
    if leads:  # one of several processes shows the results of all
        show_results(log, display.console, group_by=config.evaluation.group_by)


def _to_resume(arguments: list[str]) -> tuple[Path, str, list[str]]:
    """The folder of a run, and the recipe and options it was started with."""
    allowed, targets = split_allowed(arguments)
    if len(targets) != 1 or targets[0].startswith("-"):
        raise UsageError(
            "use spanwise train --resume RUN [--allow WORD ...]; a run is resumed as it was started"
        )
    return Path(targets[0]), *recorded_start(Path(targets[0]), allowed)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Answer held-out questions, sampled and greedily. Code that a run names is run if it is given
    again: --allow FILE.py:NAME ...
    """

    recipe: str | None = None
    """Recipe whose tasks and limits a model is measured with, by default at2po_search; not for
    a run, which has its own."""

    num_tasks: int = 300
    """Number of questions, from the beginning of the split."""

    split: Split = "test"
    """Split that the questions are from."""

    seed: int = 0
    """Seed of the sampled answers."""


def eval_command(arguments: list[str]) -> None:
    """Answer the held-out questions of a run or with a model."""
    target, rest = split_target(arguments, "eval RUN_OR_MODEL")
    allowed, rest = split_allowed(rest)
    options = parsed(EvalOptions(), rest, "spanwise eval RUN_OR_MODEL")

    from spanwise.display import Display, scores_table
    from spanwise.train.evaluate import measure

    config = _to_measure(target, options.recipe, allowed)
    config.sampler.check()
    tokenizer = config.model.load_tokenizer()
    try:
        config.env.check(tokenizer)
    except SpanwiseError as error:
        if config.model.path != target:
            raise
        raise UsageError(f"{error}; --recipe names the recipe that {target} is for") from error
    sampler = config.sampler.build(config.model.load(), tokenizer)
    context = config.context(sampler, tokenizer, options.seed)
    evaluation = dataclasses.replace(
        config.evaluation, num_tasks=options.num_tasks, split=options.split
    )
    display = Display()
    with display.waiting(f"measuring on {options.num_tasks} tasks, sampled and greedily"):
        measured = measure(context, config.rollout, evaluation)
    sampler.close()
    table = scores_table(measured, title=target, group_by=evaluation.group_by)
    display.console.print(table)


def _to_measure(target: str, recipe: str | None, allowed: list[str]) -> TrainConfig:
    """The configuration of a run with its finished model, or of a recipe with another model."""
    from spanwise.run.folder import RunFolder

    folder = Path(target)
    if not ((folder / "config.json").is_file() and (folder / "checkpoints").is_dir()):
        config, path = configured(recipe or "at2po_search", []), target
    elif recipe is not None:
        raise UsageError(f"{target} is a run and has a recipe already; leave out --recipe {recipe}")
    else:
        path = str(RunFolder.open(folder).checkpoint_path("final"))
        if not Path(path).is_dir():
            raise UsageError(f"{target} has no finished checkpoint yet ({path} is missing)")
        config = configured(*recorded_start(folder, allowed))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
