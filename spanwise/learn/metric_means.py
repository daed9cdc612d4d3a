"""Means over micro-batches, minibatches and processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from spanwise.runtime.distributed import Ranks


class MetricMeans:
    """Weighted means of named metrics; extremes of those that end in ``_min`` or ``_max``."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any], *, weight: float = 1.0) -> None:
        """Add some metrics, all of the same weight."""
        for name, metric in metrics.items():
            value = float(metric)
            if name.endswith("_min"):
                self._extremes[name] = min(value, self._extremes.get(name, value))
            elif name.endswith("_max"):
                self._extremes[name] = max(value, self._extremes.get(name, value))
            else:
                self._sums[name] += weight * value
                self._weights[name] += weight

    def over(self, ranks: Ranks) -> MetricMeans:
        """The means over all ranks."""
        if ranks.size == 1:
            return self
        total = MetricMeans()
        for sums, weights, extremes in ranks.gather((self._sums, self._weights, self._extremes)):
            for name, weight in weights.items():
                total._sums[name] += sums[name]
                total._weights[name] += weight
            total.add(extremes)
        return total

    def read(self) -> dict[str, float]:
        """The metrics so far."""
        means = {k: self._sums[k] / self._weights[k] for k in self._sums if self._weights[k]}
        return means | self._extremes
