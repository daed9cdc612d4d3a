"""A correlation study as a table, a JSON file and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table

from spanwise.runtime.provenance import provenance
from spanwise.study.correlation import Agreement, CorrelationResult, CorrelationStudy


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
    for row in sorted(result.agreements, key=lambda a: -_sortable(a.pearson)):
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
    found = dataclasses.asdict(result)
    rows = found.pop("agreements")
    settings = dataclasses.asdict(study)
    return {
        "name": "correlation",
        **provenance(),
        "recipe": recipe,
        "arguments": arguments,
        "checkpoint": checkpoint,
        "study": settings,
        **found,
        "rows": rows,
    }


def write_correlation(folder: Path, record: dict[str, Any], result: CorrelationResult) -> None:
    """Write ``correlation.json`` and ``correlation.svg`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(record), ensure_ascii=False, indent=2)
    (folder / "correlation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "correlation.svg").write_text(correlation_svg(result), encoding="utf-8")


LEFT, TOP, WIDTH, ROW = 150, 56, 460, 34
"""Of the plot, in pixels: where the axis begins, its length, and the height of a row."""


def correlation_svg(result: CorrelationResult) -> str:
    """Both correlations of each estimator with their intervals, as an SVG image."""
    rows = sorted(result.agreements, key=lambda a: -_sortable(a.pearson))
    ends = [e for a in rows for e in (*a.pearson_interval, *a.spearman_interval) if e == e]
    low = min([0.0, *(math.floor(10 * e) / 10 for e in ends)])
    high = max([low + 0.2, *(math.ceil(10 * e) / 10 for e in ends)])

    def x(value: float) -> float:
        return round(LEFT + WIDTH * (value - low) / (high - low), 1)

    height = TOP + ROW * len(rows) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-weight="bold">Correlation with the Monte Carlo advantage'
        "</text>",
        f'<text x="{LEFT}" y="40" fill="#1f5fa8">● Pearson</text>',
        f'<text x="{LEFT + 90}" y="40" fill="#b5541c">■ Spearman, 95% intervals over '
        f"{result.num_prompts} prompts</text>",
    ]
    bottom = TOP + ROW * len(rows)
    for tick in range(round((high - low) * 10) + 1):
        value = low + tick / 10
        parts.append(
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="middle">{value:.1f}</text>'
        )
    for number, row in enumerate(rows):
        middle = TOP + ROW * number + ROW / 2
        parts.append(
            f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(row.estimator)}'
            "</text>"
        )
        parts += _mark(row, x, middle)
    return "\n".join([*parts, "</svg>\n"])


def _mark(row: Agreement, x: Any, middle: float) -> list[str]:
    """Both correlations of one estimator, each a point on a bar."""
    parts: list[str] = []
    for value, ends, y, colour, round_point in (
        (row.pearson, row.pearson_interval, middle - 5, "#1f5fa8", True),
        (row.spearman, row.spearman_interval, middle + 6, "#b5541c", False),
    ):
        if not math.isfinite(value):
            continue
        bar = f'x1="{x(ends[0])}" x2="{x(ends[1])}" y1="{y}" y2="{y}"'
        parts.append(f'<line {bar} stroke="{colour}" stroke-width="2"/>')
        if round_point:
            parts.append(f'<circle cx="{x(value)}" cy="{y}" r="4" fill="{colour}"/>')
        else:
            square = f'x="{x(value) - 3.5}" y="{y - 3.5}" width="7" height="7"'
            parts.append(f'<rect {square} fill="{colour}"/>')
    return parts


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _plain(value: Any) -> Any:
    """JSON values; numbers to six places, null where there is none."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
