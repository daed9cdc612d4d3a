"""``spanwise study``: a study of a finished run, shown and written into its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from spanwise.credit import SpanAdvantage
from spanwise.display import Display
from spanwise.models.loading import ModelError
from spanwise.run.folder import RunError, RunFolder
from spanwise.runtime.distributed import ALONE
from spanwise.study.correlation import CorrelationStudy, correlation_study
from spanwise.study.report import correlation_record, correlation_table, write_correlation
from spanwise.train.config import TrainConfig

PROMPTS_PER_LINE = 20
"""Prompts from one line of progress to the next."""


@dataclass(frozen=True, kw_only=True)
class CorrelationOptions(CorrelationStudy):
    """The agreement of a run's advantages, from its critic, with Monte Carlo advantages."""

    folder: Path | None = None
    """Folder of the results; by default RUN/study, or RUN/study/NAME for a checkpoint NAME."""


def run_correlation(
    run: Path,
    options: CorrelationOptions,
    start_of: Callable[[Path], tuple[str, list[str]]],
    configured: Callable[[str, Sequence[str]], TrainConfig],
) -> None:
    """Study a checkpoint of a run: one table, one JSON file.
    ``run`` is a run folder, for its final checkpoint, or the folder of one of its checkpoints;
    ``start_of`` says which recipe and arguments a run folder was started with.
    """
    if run.parent.name == "checkpoints" and not (run / "checkpoints").is_dir():
        log, path = RunFolder.open(run.parent.parent), run
    else:
        log = RunFolder.open(run)
        path = log.checkpoint_path("final")
    if not path.is_dir():
        raise ModelError(f"{run} has no finished checkpoint yet ({path} is missing)")
    recipe, started_with = start_of(log.folder)
    config = configured(recipe, started_with)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(path)))
    if not isinstance(config.advantage, SpanAdvantage):
        raise ModelError(f"{run} was trained without a critic; take a run of a PPO recipe")
    folder = log.folder / "study" / ("" if path.name == "final" else path.name)
    folder = options.folder or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write the results to {folder}: {error.strerror}") from error
    tokenizer = config.model.load_tokenizer()
    policy = config.model.load()
    critic = config.critic.build(policy, config.model, ALONE)
    assert critic is not None  # a span advantage has one: the configuration says so
    critic.model.restore(path)
    sampler = config.sampler.build(policy, tokenizer)
    context = config.context(sampler, tokenizer, options.seed)
    console = Display().console
    console.print(f"{options.num_prompts} rollouts, then Monte Carlo values")

    def progress(done: int, total: int, seconds_left: float) -> None:
        if done % PROMPTS_PER_LINE == 0 or done == total:
            line = f"prompt {done}/{total}, about {seconds_left:.0f} s left"
            console.print(line)

    result = correlation_study(options, config, context, policy, critic.model, progress)
    sampler.close()
    console.print(correlation_table(result))
    arguments = without_folder(started_with)
    figures = correlation_record(
        result, options, recipe=recipe, arguments=arguments, checkpoint=path.name
    )
    write_correlation(folder, figures)
    console.print(f"results  {folder}/correlation.json")


def without_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments of a run without the place it was written to.

    Example:
      >>> without_folder(["--steps", "8", "--folder", "runs/a", "--seed", "1"])
      ['--steps', '8', '--seed', '1']
    """
    pairs = pairwise(["", *arguments])
    return [word for before, word in pairs if "--folder" not in (before, word.split("=")[0])]
