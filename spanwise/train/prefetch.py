"""One step off: the next step is sampled while this one is trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from spanwise.train.task_sampling import Sampled


class Prefetcher:
    """One step's sampling in a thread of its own; nothing is under way until it is begun."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[Sampled] | None = None

    def begin(self, sample: Callable[[], Sampled]) -> None:
        """Have ``sample`` run beside the caller; what was begun before is to be taken first."""
        assert self._coming is None
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._coming = self._thread.submit(sample)

    def settle(self) -> None:
        """Wait until the engine is at rest: its weights may be changed, others may use it."""
        if self._coming is not None:
            wait([self._coming])

    def take(self) -> Sampled | None:
        """What was sampled, once; None if nothing was begun.

        Raises:
          Exception: what the sampling raised.
        """
        coming, self._coming = self._coming, None
        return None if coming is None else coming.result()

    def close(self) -> None:
        """Wait for the sampling under way, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
