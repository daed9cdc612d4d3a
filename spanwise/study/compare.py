"""Are these runs better than those? Held-out scores over seeds, and how sure one can be.

Runs that differ in their seed alone are one group. A group is told by its median and an
interval; two groups by the probability that a run of the one beats a run of the other,
which asks for no assumption on how scores are spread (Agarwal et al., arXiv:2108.13264).
Few seeds say little, and the intervals say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from spanwise.display import shown_score
from spanwise.errors import printable
from spanwise.run.folder import RunError, RunFolder
from spanwise.run.settings import differing, flat_settings
from spanwise.study.statistics import bootstrap_interval

LEAST_SEEDS = 3
"""With fewer, no interval is given: there is too little to resample."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The scores and settings of a run that comparisons need."""

    folder: Path
    recipe: str
    seed: int
    settings: Mapping[str, str]
    """Dotted names and their values, but for the seed and the folder."""

    before: Mapping[str, float]
    """The held-out scores before training, by name."""

    after: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[FinishedRun, ...]

    def after(self, score: str) -> list[float]:
        """The runs' scores of that name after training."""
        return [run.after[score] for run in self.runs]


def read_run(folder: Path) -> FinishedRun:
    """A run's held-out scores before and after training.

    Raises:
      RunError: if the folder is no run or the run has not ended.
    """
    log = RunFolder.open(folder)
    config = log.read_config()
    if not log.summary_path.exists():
        raise RunError(f"{folder} has no summary.json: the run has not ended")
    summary = log.read_summary()
    try:
        return FinishedRun(
            folder=folder,
            recipe=str(config["recipe"]),
            seed=int(summary["seed"]),
            settings={
                name: json.dumps(value)
                for name, value in flat_settings(config["config"]).items()
                if name not in ("seed", "folder")
            },
            before=_scores(summary["before"]),
            after=_scores(summary["after"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"{folder}: summary.json or config.json lacks {error}") from error


def score_of_all(runs: Sequence[FinishedRun], wanted: str = "") -> str:
    """The name of the compared score: the one wanted, else ``success`` if all have it.

    Raises:
      RunError: if a run does not have it; the message names what all have.
    """
    measured = [run.before.keys() & run.after.keys() for run in runs]
    common = set[str].intersection(*map(set, measured))
    name = wanted or ("success" if "success" in common else "score")
    if name not in common:
        there_are = ", ".join(sorted(common)) or "none"
        raise RunError(f"not every run was measured by {name!r}; the scores of all are {there_are}")
    return name


def run_groups(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Runs grouped by recipe and settings, named by what tells the groups apart.

    Raises:
      RunError: if one seed of a group is there twice: it would count as two.
    """
    alike: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        key = (run.recipe, json.dumps(run.settings, sort_keys=True))
        alike.setdefault(key, []).append(run)
    for members in alike.values():
        seeds = [run.seed for run in members]
        if repeated := {seed for seed in seeds if seeds.count(seed) > 1}:
            folders = " and ".join(str(r.folder) for r in members if r.seed in repeated)
            raise RunError(f"{folders} are the same run: same settings, seed {min(repeated)}")
    groups: list[RunGroup] = []
    for first, *rest in alike.values():
        rivals = [m[0].settings for m in alike.values() if m[0].recipe == first.recipe]
        names = sorted({n for rival in rivals for n in differing(first.settings, rival)})
        own = [f"{name} {first.settings[name]}" for name in names if name in first.settings][:3]
        groups.append(RunGroup(name=", ".join([first.recipe, *own]), runs=(first, *rest)))
    return groups


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of pairs in which our run beats their run, ties counting half.

    Limits: 1 if all of ours are above all of theirs, 0.5 for a group against itself.

    Example:
      >>> probability_of_improvement([0.5, 0.9], [0.5, 0.6])
      0.625
    """
    wins = sum((x > y) + 0.5 * (x == y) for x in ours for y in theirs)
    return wins / (len(ours) * len(theirs))


def comparison(groups: Sequence[RunGroup], score: str) -> Group:
    """The tables of ``spanwise compare``, by the score of that name."""
    unit = ", %" if shown_score(score, 0.0).endswith("%") else ""
    title = f"Held-out {score.replace('_', ' ')}{unit} (95% interval over seeds)"
    table = Table("", "group", title=title)
    for name in ("seeds", "before", "after", "gain"):
        table.add_column(name, justify="right")
    for letter, group in zip(_letters(groups), groups, strict=True):
        before = [run.before[score] for run in group.runs]
        after = group.after(score)
        gains = [new - old for old, new in zip(before, after, strict=True)]
        medians = [_median(score, before), _median(score, after), _median(score, gains, "+")]
        table.add_row(letter, printable(group.name), str(len(group.runs)), *medians)
    parts: list[Any] = [table]
    if len(groups) > 1:
        parts.append(_improvement_table(groups, score))
    if any(len(group.runs) < LEAST_SEEDS for group in groups):
        parts.append(Text(f"no interval with fewer than {LEAST_SEEDS} seeds", style="dim"))
    return Group(*parts)


def _improvement_table(groups: Sequence[RunGroup], score: str) -> Table:
    title = "Probability that a run of the row beats a run of the column, %"
    table = Table("", title=title, min_width=66)
    scores = [group.after(score) for group in groups]

    def cell(row: int, column: int) -> str:
        if row == column:
            return "–"
        shown = lambda share, _: f"{100 * share:.0f}"  # noqa: E731
        return _with_interval(probability_of_improvement, shown, scores[row], scores[column])

    for letter in _letters(groups):
        table.add_column(letter, justify="right")
    for row, letter in enumerate(_letters(groups)):
        table.add_row(letter, *(cell(row, column) for column in range(len(groups))))
    return table


def _letters(groups: Sequence[RunGroup]) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(groups))]


def _median(score: str, values: Sequence[float], sign: str = "") -> str:
    def shown(value: float, sign: str = "") -> str:
        return shown_score(score, value, sign).rstrip("%")

    return _with_interval(np.median, shown, values, sign=sign)


def _with_interval(
    statistic: Callable[..., Any],
    shown: Callable[[float, str], str],
    *samples: Sequence[float],
    sign: str = "",
) -> str:
    """A statistic with its interval, where there are seeds enough for one."""
    value = shown(float(statistic(*samples)), sign)
    if min(map(len, samples)) < LEAST_SEEDS:
        return value
    low, high = (shown(float(end), "") for end in bootstrap_interval(statistic, *samples))
    return f"{value} ({low} to {high})"


def _scores(measured: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if isinstance(value, float)}
