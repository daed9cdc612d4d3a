"""Several HTTP servers of one model behind one call: routing, failure and recovery."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from spanwise.errors import one_line
from spanwise.samplers.base import EngineError

_MAX_TREES = 4096
"""Number of trees whose server is remembered."""

_SILENT = "does not answer GET /health"


@dataclass(kw_only=True, eq=False)
class Server:
    """One server of the pool."""

    url: str
    up: bool = False
    """Whether it is asked for turns: it answers, and has the current weights."""

    requests: set[asyncio.Task[Any]] = field(default_factory=set)
    """Requests under way."""


Refresh = Callable[[Server], Awaitable[None]]


class ServerPool:
    """Sends each request to the server with the fewest under way, a tree's to one server.

    A server that does not answer, or says that it is unwell, is taken out; its requests go to
    the others, and its health is probed further. Once it is well it gets the current weights
    and comes back. All methods belong to one event loop.

    Args:
      urls: Addresses of the servers, without a path.
      patience_s: Seconds that a request waits while no server is up.
      probe_s: Seconds between two probes of a server's health; a probe may take twice as
        long. A server that is out is probed four times as often.
    """

    def __init__(self, urls: Sequence[str], *, patience_s: float, probe_s: float = 10.0) -> None:
        self._servers = [Server(url=url) for url in urls]
        self._patience_s, self._probe_s = patience_s, probe_s
        self._homes: OrderedDict[str, Server] = OrderedDict()
        self._refresh: Refresh | None = None
        self._changed = asyncio.Event()
        # Servers are asked directly, whatever proxy the environment names for the web.
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=5.0),
            # Servers keep idle connections longer: none is used while it is being closed.
            limits=httpx2.Limits(keepalive_expiry=2.0),
            trust_env=False,
        )
        self._watches = [asyncio.ensure_future(self._watch(s)) for s in self._servers]

    async def ask(self, path: str, body: Any, tree: str = "") -> Any:
        """The JSON answer of a server, the same one for all requests of a ``tree``."""
        while True:
            server = await self._server(tree)
            request = asyncio.ensure_future(self.post(server, path, body))
            server.requests.add(request)
            try:
                await asyncio.wait({request})
            finally:
                request.cancel()
                server.requests.discard(request)
            if request.cancelled():
                continue  # the server was taken out
            error = request.exception()
            if error is None:
                return request.result()
            if await self._is_well(server):
                raise EngineError(_words(error)) from error
            self._take_out(server, _words(error))

    async def post(self, server: Server, path: str, body: Any) -> Any:
        """The JSON answer of this server; an ``EngineError`` if it answers with an error."""
        answer = await self._client.post(server.url + path, json=body)
        if answer.status_code != 200:
            raise EngineError(
                f"{server.url}{path} answers {answer.status_code}: {one_line(answer.text)}"
            )
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise EngineError(f"{server.url}{path} answers with what is not JSON") from error

    async def update(self, refresh: Refresh) -> None:
        """Bring all servers up to date with ``refresh``, and those that come back later."""
        self._refresh = refresh
        faults = await asyncio.gather(*(self._bring_in(s) for s in self._servers))
        if all(faults):
            raise EngineError(f"no server took the weights: {faults[0]}")
        for server, fault in zip(self._servers, faults, strict=True):
            if fault:
                _warn(f"vLLM server {server.url} is out: {fault}")

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._client.aclose()

    async def _server(self, tree: str) -> Server:
        """The server for a request; waits while none is up."""
        until = time.monotonic() + self._patience_s
        while not (up := [server for server in self._servers if server.up]):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), until - time.monotonic())
            except TimeoutError:
                raise EngineError(
                    f"none of {len(self._servers)} vLLM servers was up for {self._patience_s:g} s"
                ) from None
        if (home := self._homes.get(tree)) is None or not home.up:
            home = min(up, key=lambda server: len(server.requests))
        if tree:
            self._homes[tree] = home
            self._homes.move_to_end(tree)
            if len(self._homes) > _MAX_TREES:
                self._homes.popitem(last=False)
        return home

    async def _watch(self, server: Server) -> None:
        """Probe the server as long as the pool lives."""
        while True:
            await asyncio.sleep(self._probe_s if server.up else self._probe_s / 4)
            well = await self._is_well(server)
            if server.up and not well:
                self._take_out(server, _SILENT)
            elif not server.up and well and self._refresh and not await self._bring_in(server):
                _warn(f"vLLM server {server.url} is back")

    async def _bring_in(self, server: Server) -> str:
        """Give it the current weights; returns what went wrong, or nothing."""
        while (refresh := self._refresh) is not None:
            try:
                await self._refreshed(server, refresh)
            except (EngineError, httpx2.TransportError) as error:
                if refresh is self._refresh:
                    server.up = False
                    return _words(error)
            else:
                if refresh is self._refresh:
                    break
        server.up = True
        self._changed.set()
        return ""

    async def _refreshed(self, server: Server, refresh: Refresh) -> None:
        """``refresh`` it, for as long as that takes and the server is well."""
        refreshing = asyncio.ensure_future(refresh(server))
        try:
            while not (await asyncio.wait({refreshing}, timeout=self._probe_s))[0]:
                if not await self._is_well(server):
                    raise EngineError(f"{server.url} {_SILENT}")
            refreshing.result()
        finally:
            refreshing.cancel()

    def _take_out(self, server: Server, reason: str) -> None:
        if server.up:
            server.up = False
            _warn(f"vLLM server {server.url} is out: {reason}")
        for request in server.requests:
            request.cancel()

    async def _is_well(self, server: Server) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            answer = await self._client.get(server.url + "/health", timeout=2 * self._probe_s)
            return answer.status_code == 200
        return False


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
