"""The results file of a measurement: what was measured, where, and at which commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanwise.runtime.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def save(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write ``bench/results/<name>.json``: the rows, and ``more`` after them."""
    result = {"name": name, **provenance(), "rows": rows, **more}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
