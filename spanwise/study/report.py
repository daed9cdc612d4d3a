"""A correlation study as a table and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from spanwise.runtime.provenance import provenance
from spanwise.study.correlation import CorrelationResult, CorrelationStudy


def correlation_table(result: CorrelationResult) -> Table:
    """One line for each estimator, best Pearson correlation first."""
    table = Table(
        title=f"Correlation with the Monte Carlo advantage: {result.num_prompts} prompts, "
        f"{result.num_tokens} tokens",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("estimator", no_wrap=True)
    for name in ("Pearson", "Spearman", "over SAE start"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(
        result.agreements, key=lambda a: math.inf if a.pearson != a.pearson else -a.pearson
    ):
        cells: list[str] = []
        for name in ("pearson", "spearman", "over_reference"):
            low, high = getattr(row, f"{name}_interval")
            cells.append(f"{getattr(row, name):.2f} [{low:.2f}, {high:.2f}]")
        table.add_row(row.estimator, *cells)
    table.caption = (
        f"95% intervals over prompts; the critic explains {result.critic_explained_variance:.2f} "
        f"of the variance of the outcomes; reliability of the truth {result.truth_reliability:.2f}"
    )
    return table


def correlation_record(
    result: CorrelationResult,
    study: CorrelationStudy,
    *,
    recipe: str,
    arguments: list[str],
    checkpoint: str,
) -> dict[str, Any]:
    """The study as plain JSON values, with commit, date and machine."""
    figures = dataclasses.asdict(result)
    rows, settings = figures.pop("agreements"), dataclasses.asdict(study)
    settings.pop("folder", None)
    return {
        "name": "correlation",
        **provenance(),
        "recipe": recipe,
        "arguments": arguments,
        "checkpoint": checkpoint,
        "study": settings,
        **figures,
        "rows": rows,
    }


def write_correlation(folder: Path, record: dict[str, Any]) -> None:
    """Write ``correlation.json`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(record), ensure_ascii=False, indent=2)
    (folder / "correlation.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON values; numbers to six places, null where there is none."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
