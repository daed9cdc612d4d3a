"""AT²PO where searches are paid on the way: the run whose tree ``docs/viewer.md`` shows.

spanwise train docs/pictures/paid_search.py:paid_search --folder runs/paid_search
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.recipes.search import at2po_search
from spanwise.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PaidSearch(MultiHopSearch):
    """A search that finds what no search before it found earns 0.2, any other costs 0.1."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """As without pay, and what is paid."""
        reply = await super().reply(task, turns)
        if reply.stop != "continue":
            return reply
        known = {title for turn in turns for title in turn.outcome.get("documents", ())}
        found = set(reply.outcome["documents"]) - known
        return replace(reply, reward=0.2 if found else -0.1)


def paid_search() -> TrainConfig:
    """``at2po_search`` with pay."""
    return replace(at2po_search(), env=PaidSearch())
