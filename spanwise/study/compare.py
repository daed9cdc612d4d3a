"""Are these runs better than those? Held-out scores over seeds, and how sure one can be.

Runs that differ in their seed alone are one group. A group is told by its median and an
interval; two groups by the probability that a run of the one beats a run of the other,
which asks for no assumption on how scores are spread (Agarwal et al., arXiv:2108.13264).
Few seeds say little, and the intervals say so.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from spanwise.display import printable
from spanwise.run.folder import RunError, RunFolder

Score = Literal["exact_match", "greedy"]

LEAST_SEEDS = 3
"""With fewer, no interval is given: there is too little to resample."""

DRAWS = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What comparing needs of a run."""

    folder: Path
    recipe: str
    seed: int
    settings: Mapping[str, str]
    """Dotted names and their values, but for the seed and the folder."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[FinishedRun, ...]

    @property
    def scores(self) -> list[float]:
        return [run.after for run in self.runs]


def read_run(folder: Path, score: Score) -> FinishedRun:
    """A run's held-out score before and after training.

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
            settings=_flat(config["config"]),
            before=float(summary["before"][score]),
            after=float(summary["after"][score]),
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder}: summary.json or config.json lacks {error}") from error


def run_groups(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Runs grouped by recipe and settings, named by what tells the groups apart.

    Raises:
      RunError: if one seed of a group is there twice: it would count as two.
    """
    found: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        key = (run.recipe, json.dumps(run.settings, sort_keys=True))
        found.setdefault(key, []).append(run)
    for members in found.values():
        seeds = [run.seed for run in members]
        if repeated := {seed for seed in seeds if seeds.count(seed) > 1}:
            folders = " and ".join(str(r.folder) for r in members if r.seed in repeated)
            raise RunError(f"{folders} are the same run: same settings, seed {min(repeated)}")
    firsts = [members[0] for members in found.values()]
    groups: list[RunGroup] = []
    for first, members in zip(firsts, found.values(), strict=True):
        others = [other for other in firsts if other.recipe == first.recipe and other is not first]
        names = sorted({n for o in others for n in _differing(first.settings, o.settings)})
        told = [f"{name} {first.settings[name]}" for name in names if name in first.settings][:3]
        groups.append(RunGroup(name=", ".join([first.recipe, *told]), runs=tuple(members)))
    return groups


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often a run of ours beats a run of theirs, ties counting half.

    Limits: 1 if all of ours are above all of theirs, 0.5 for a group against itself.

    Example:
      >>> probability_of_improvement([0.5, 0.9], [0.5, 0.6])
      0.625
    """
    wins = sum((x > y) + 0.5 * (x == y) for x in ours for y in theirs)
    return wins / (len(ours) * len(theirs))


def bootstrap_interval(
    statistic: Callable[..., float], *samples: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of a statistic when each sample is drawn anew from itself.

    Args:
      statistic: Of as many lists as there are samples.
      samples: Scores of seeds, each list resampled on its own.
      level: Share of the draws that lie inside.
      seed: Of the draws.

    Returns:
      Low and high end; None if a sample has fewer than ``LEAST_SEEDS``.

    Example:
      >>> bootstrap_interval(statistics.median, [0.5, 0.5, 0.5])
      (0.5, 0.5)
    """
    if min(map(len, samples)) < LEAST_SEEDS:
        return None
    draw = random.Random(seed)
    found = sorted(statistic(*(draw.choices(s, k=len(s)) for s in samples)) for _ in range(DRAWS))
    tail = (1 - level) / 2
    return found[int(tail * DRAWS)], found[int((1 - tail) * DRAWS) - 1]


def comparison(groups: Sequence[RunGroup], score: Score) -> Group:
    """The tables of ``spanwise compare``."""
    table = Table(title=f"Held-out {score}, % (95% interval over seeds)")
    for name in ("", "group", "seeds", "before", "after", "gain"):
        table.add_column(
            name, justify="right" if name in ("seeds", "before", "after", "gain") else "left"
        )
    for letter, group in zip(_letters(groups), groups, strict=True):
        table.add_row(
            letter,
            printable(group.name),
            str(len(group.runs)),
            _percent([run.before for run in group.runs]),
            _percent(group.scores),
            _percent([run.after - run.before for run in group.runs], sign="+"),
        )
    parts: list[Any] = [table]
    if len(groups) > 1:
        parts.append(_improvement_table(groups))
    if any(len(group.runs) < LEAST_SEEDS for group in groups):
        text = f"no interval with fewer than {LEAST_SEEDS} seeds"
        parts.append(Text(text, style="dim"))
    return Group(*parts)


def _improvement_table(groups: Sequence[RunGroup]) -> Table:
    table = Table(
        title="Probability that a run of the row beats a run of the column, %", min_width=66
    )
    table.add_column("")
    for letter in _letters(groups):
        table.add_column(letter, justify="right")
    for letter, ours in zip(_letters(groups), groups, strict=True):
        cells: list[str] = []
        for theirs in groups:
            if ours is theirs:
                cells.append("–")
                continue
            value = probability_of_improvement(ours.scores, theirs.scores)
            interval = bootstrap_interval(probability_of_improvement, ours.scores, theirs.scores)
            cells.append(f"{100 * value:.0f}{_interval(interval, 0)}")
        table.add_row(letter, *cells)
    return table


def _letters(groups: Sequence[RunGroup]) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(groups))]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _percent(values: Sequence[float], sign: str = "") -> str:
    interval = bootstrap_interval(_median, values)
    return f"{100 * statistics.median(values):{sign}.1f}{_interval(interval, 1)}"


def _interval(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * end:.{digits}f}" for end in interval)
    return f" ({low} to {high})"


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {} if name in ("seed", "folder") else {name: json.dumps(value)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else key)
    return found


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> set[str]:
    return {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
