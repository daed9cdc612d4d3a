"""``spanwise study``: a study of a finished run, shown and written into its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanwise.credit import SpanAdvantage
from spanwise.display import Display
from spanwise.models.loading import ModelError
from spanwise.rollout.context import RolloutContext
from spanwise.run.folder import RunError, RunFolder
from spanwise.runtime.distributed import ALONE
from spanwise.study.correlation import CorrelationStudy, correlation_study
from spanwise.study.report import correlation_record, correlation_table, write_correlation
from spanwise.train.config import TrainConfig

PROMPTS_PER_LINE = 20
"""Progress is shown at every so many prompts."""


@dataclass(frozen=True, kw_only=True)
class CorrelationOptions(CorrelationStudy):
    """Which advantages of a run with a critic agree with Monte Carlo advantages."""

    folder: Path | None = None
    """For the results; by default RUN/study, or RUN/study/NAME for a checkpoint of that name."""


def run_correlation(
    run: Path,
    options: CorrelationOptions,
    configured: Callable[[str, Sequence[str]], TrainConfig],
) -> None:
    """Study a checkpoint of a run: one table, one JSON file, one plot.

    Args:
      run: The run folder, for its final checkpoint; or the folder of one of its checkpoints.
      options: Size of the study.
      configured: Gives the configuration of a recipe with arguments.

    Raises:
      RunError: if there is no such run, or the results could not be written.
      ModelError: if it has no finished checkpoint, or no critic.
    """
    log, path = _checkpoint(run)
    record = log.read_config()
    if not path.is_dir():
        raise ModelError(f"{run} has no finished checkpoint yet ({path} is missing)")
    config = configured(record["recipe"], record["arguments"])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(path)))
    if not isinstance(config.advantage, SpanAdvantage):
        raise ModelError(f"{run} was trained without a critic; take a run of a PPO recipe")
    folder = options.folder or _results(log, path)
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
    context = RolloutContext(
        env=config.env,
        sampler=sampler,
        tokenizer=tokenizer,
        seed=options.seed,
        failures=config.failures,
    )

    console = Display().console
    console.print(f"{options.num_prompts} rollouts, then Monte Carlo values", highlight=False)

    def progress(done: int, total: int, seconds_left: float) -> None:
        if done % PROMPTS_PER_LINE == 0 or done == total:
            line = f"prompt {done}/{total}, about {seconds_left:.0f} s left"
            console.print(line, highlight=False)

    result = correlation_study(options, config, context, policy, critic.model, progress)
    sampler.close()
    console.print(correlation_table(result))
    settings = CorrelationStudy(
        **{f.name: getattr(options, f.name) for f in dataclasses.fields(CorrelationStudy)}
    )
    arguments = without_folder(record["arguments"])
    found = correlation_record(
        result, settings, recipe=record["recipe"], arguments=arguments, checkpoint=path.name
    )
    write_correlation(folder, found, result)
    console.print(f"results  {folder}/correlation.json, correlation.svg", highlight=False)


def _checkpoint(folder: Path) -> tuple[RunFolder, Path]:
    """The run, and which of its checkpoints is meant."""
    if folder.parent.name == "checkpoints" and not (folder / "checkpoints").is_dir():
        return RunFolder.open(folder.parent.parent), folder
    log = RunFolder.open(folder)
    return log, log.checkpoint_path("final")


def _results(log: RunFolder, path: Path) -> Path:
    """Where the results of a checkpoint go, each to a place of its own."""
    final = path.name == log.checkpoint_path("final").name
    return log.folder / "study" if final else log.folder / "study" / path.name


def without_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments of a run without the place it was written to.

    Example:
      >>> without_folder(["--steps", "8", "--folder", "runs/a", "--seed", "1"])
      ['--steps', '8', '--seed', '1']
    """
    kept: list[str] = []
    for number, argument in enumerate(arguments):
        named = argument == "--folder" or argument.startswith("--folder=")
        if not named and (number == 0 or arguments[number - 1] != "--folder"):
            kept.append(argument)
    return kept
