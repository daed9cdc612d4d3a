"""Tools of MCP servers: a process, an address, or a server object in this process.

References:
  Model Context Protocol, specification of 2026-07-28; its Python SDK, version 2.
"""

from __future__ import annotations

import asyncio
import shlex
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spanwise.envs.agents.tool_chat import Chat, ToolChat
from spanwise.envs.agents.tools import AgentTool, result_text
from spanwise.envs.base import Task
from spanwise.envs.stateful import NoCopy
from spanwise.errors import SpanwiseError, one_line
from spanwise.models.tokenizer import Tokenizer
from spanwise.tools.base import ToolCrash, ToolError, ToolTimeout

if TYPE_CHECKING:
    from mcp import Client


class Session:
    """A connection to a server, held open by a task of its own.

    The SDK wants a connection to be opened and closed by the same task, and a rollout opens
    and closes in different ones.
    """

    def __init__(self, client: Client, deadline_s: float) -> None:
        self._client, self._deadline_s = client, deadline_s
        self._ready, self._over = asyncio.Event(), asyncio.Event()
        self.users = 0
        """Trajectories that use it."""

    async def begin(self) -> Session:
        """Connect.

        Raises:
          ToolCrash: if the server does not answer.
        """
        self._task = asyncio.ensure_future(self._hold())
        ready = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait(
            {self._task, ready}, timeout=self._deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not self._ready.is_set():
            failed = self._task.done() and not self._task.cancelled() and self._task.exception()
            self._task.cancel()
            why = one_line(_cause(failed)) if failed else f"no answer in {self._deadline_s:g} s"
            raise ToolCrash(f"the MCP server cannot be reached: {why}")
        return self

    async def end(self) -> None:
        """Leave; the connection is closed once nobody uses it."""
        self.users -= 1
        if self.users == 0:
            self._over.set()
            await asyncio.wait({self._task}, timeout=self._deadline_s)
            self._task.cancel()

    async def schemas(self) -> list[dict[str, Any]]:
        """What the server says of its tools, for the chat template."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page: Any = await self._client.list_tools(cursor=cursor)
            found += [_schema(tool) for tool in page.tools]
            if (cursor := page.next_cursor) is None:
                return found

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool of the server says, errors of its own included.

        Raises:
          ToolError: if the server does not answer, or not by the protocol.
        """
        if self._task.done():
            raise ToolCrash("the MCP server has gone away")
        answer = asyncio.ensure_future(self._client.call_tool(name, dict(arguments)))
        await asyncio.wait(
            {answer, self._task}, timeout=self._deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not answer.done():
            answer.cancel()
            if self._task.done():
                raise ToolCrash("the MCP server has gone away")
            raise ToolTimeout(f"{name} gave no answer in {self._deadline_s:g} s")
        if (error := answer.exception()) is not None:
            if "connection closed" in str(error).lower():
                raise ToolCrash("the MCP server has gone away") from error
            raise ToolError(f"{name}: {one_line(error)}") from error
        return _text(answer.result())

    async def _hold(self) -> None:
        async with self._client:
            self._ready.set()
            await self._over.wait()


@dataclass(frozen=True)
class MCPTool(AgentTool):
    """A tool of a server, in one session."""

    schema: Mapping[str, Any]  # pyright: ignore[reportIncompatibleVariableOverride]
    session: Session | None

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        assert self.session is not None, "tools that are only described cannot be called"
        return await self.session.call(self.name, arguments)


@dataclass(frozen=True, kw_only=True)
class MCPChat(ToolChat[Session]):
    """A chat whose tools are those of an MCP server; tasks and scores are the subclass's.

    Each trajectory has a session of its own, and a fork is a replay of its calls in a new
    one. A server that only reads may be shared: then all trajectories have one session.
    """

    server: str = ""
    """Command line of a server on stdin and stdout, or the http(s) address of one."""

    read_only: bool = False
    """Whether calls change nothing, so that all trajectories can share one session."""

    deadline_s: float = 30.0
    """Seconds that a call, or the opening of a session, may take."""

    @abstractmethod
    def score(self, inner: Session, task: Task, answer: str | None) -> Any:
        """The reward of a trajectory that ends; the session may be asked."""

    def connection(self) -> Any:
        """What the SDK's ``Client`` connects to; it may be a server object in this process."""
        if self.server.startswith(("http://", "https://")):
            return self.server
        command = shlex.split(self.server)
        if not command:
            raise SpanwiseError(
                "env.server is empty: give the command line of an MCP server or its address"
            )
        from mcp import StdioServerParameters

        return StdioServerParameters(command=command[0], args=command[1:])

    async def begin(self, task: Task, seed: int) -> Session:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A new session, or one more user of the shared one."""
        if self.read_only:  # one trajectory that is interrupted leaves the opening to the others
            session = await asyncio.shield(self._shared_session())
        else:
            session = await self._session()
        session.users += 1
        return session

    async def end(self, inner: Session) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        await inner.end()

    def copy(self, state: Chat[Session]) -> Chat[Session]:
        """Another user of a shared session.

        Raises:
          NoCopy: if the session is the trajectory's own.
        """
        if not self.read_only:
            raise NoCopy("a session is not copied but replayed")
        state.inner.users += 1
        return Chat(state.inner, state.task, state.num_turns)

    def tools(self, inner: Session | None) -> Sequence[AgentTool]:
        """The server's, asked for once."""
        return [MCPTool(schema, inner) for schema in self._schemas]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a server that does not answer, or has no tools."""
        try:
            _ = self._schemas
        except ToolError as error:
            raise SpanwiseError(f"env.server {self.server!r}: {error}") from error
        super().check(tokenizer)

    async def _session(self) -> Session:
        try:
            from mcp import Client
        except ImportError as error:
            raise SpanwiseError(
                "MCP servers are reached by the package mcp, version 2, which is not installed: "
                "pip install 'spanwise[mcp]'"
            ) from error
        return await Session(Client(self.connection()), self.deadline_s).begin()

    def _shared_session(self) -> asyncio.Future[Session]:
        """The session of this event loop, new if the last has been left by all."""
        loop = asyncio.get_running_loop()
        found = self._shared.get(loop)
        if found is None or (found.done() and (found.exception() or not found.result().users)):
            self._shared.clear()
            found = self._shared[loop] = asyncio.ensure_future(self._session())
        return found

    @cached_property
    def _shared(self) -> dict[asyncio.AbstractEventLoop, asyncio.Future[Session]]:
        return {}

    @cached_property
    def _schemas(self) -> list[dict[str, Any]]:
        async def ask() -> list[dict[str, Any]]:
            session = await self._session()
            session.users = 1
            try:
                return await session.schemas()
            finally:
                await session.end()

        return _in_a_loop_of_its_own(ask)


def _in_a_loop_of_its_own(ask: Any) -> Any:
    """The result of a coroutine, also where a loop is running: in a thread."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(asyncio.run(ask()))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _schema(tool: Any) -> dict[str, Any]:
    """A tool's description as chat templates take it."""
    described = {"name": tool.name, "description": tool.description or tool.title or tool.name}
    return {"type": "function", "function": {**described, "parameters": dict(tool.input_schema)}}


def _text(result: Any) -> str:
    """The text of an answer; what is no text is named, and structured content is JSON."""
    parts = [
        part.text if part.type == "text" else f"[{part.type} left out]" for part in result.content
    ]
    if not parts and result.structured_content is not None:
        return result_text(result.structured_content)
    return result_text("\n".join(parts))


def _cause(error: BaseException) -> BaseException:
    """The first exception of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
