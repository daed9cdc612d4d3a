"""A plain class as a user writes it."""

from __future__ import annotations

import json


class Till:
    """Count money."""

    @staticmethod
    def rows(split: str) -> list[dict[str, object]]:
        return [{"prompt": f"Put {n} into the till.", "wanted": n} for n in range(1, 5)]

    def reset(self, wanted: int, **row: object) -> str:
        self.wanted, self.sum = wanted, 0
        return "It is empty."

    def add(self, amount: int) -> str:
        """Put money into the till.

        Args:
            amount: How much.
        """
        self.sum += amount
        return f"{self.sum} in the till"

    def get_reward(self) -> float:
        return float(self.sum == self.wanted)


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
