"""An event loop in a thread of its own, for clients that outlive their callers' loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines in one loop, whatever loop asks for them.

    Training opens a loop for every batch. Connections and engines live in theirs for the
    whole run: this is it.

    Example:
      >>> async def answer(): return 42
      >>> thread = LoopThread("example")
      >>> thread.call(answer()), asyncio.run(thread.awaited(answer()))
      (42, 42)
      >>> thread.close()
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait here until it is done."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait in the caller's loop; a caller that is cancelled cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancel what still runs, and end the thread. Closing twice does nothing."""
        if self._loop.is_closed():
            return
        self.call(_cancel_the_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_the_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
