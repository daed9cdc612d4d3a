"""Seeds that follow identity, never the order in which things happen to finish."""

from __future__ import annotations

import hashlib


def seed_of(*identity: int | str | tuple[int, ...]) -> int:
    """A 63-bit seed made from what a draw is for, such as the run's seed, a step and a name.

    Example:
      >>> seed_of(0, 1, "task-7", (0, 2)) == seed_of(0, 1, "task-7", (0, 2))
      True
      >>> seed_of(0, 1, "task-7", (0, 2)) == seed_of(0, 1, "task-7", (0, 3))
      False
    """
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
