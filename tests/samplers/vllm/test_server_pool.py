"""The pool over small HTTP servers that die, hang, fail and come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from spanwise.samplers.base import EngineError
from spanwise.samplers.vllm.server_pool import Server, ServerPool
from tests.samplers.vllm.fake_server import FakeServer

TURN = "/inference/v1/generate"
ASK = {"token_ids": [1]}

pytestmark = pytest.mark.filterwarnings("ignore:vLLM server:RuntimeWarning")


@pytest.fixture
def servers() -> Iterator[list[FakeServer]]:
    fakes = [FakeServer() for _ in range(3)]
    yield fakes
    for fake in fakes:
        fake.gate.set()
        fake.die()


def pooled(
    servers: list[FakeServer],
    body: Callable[[ServerPool], Awaitable[None]],
    *,
    patience_s: float = 5.0,
    probe_s: float = 0.4,
) -> None:
    async def run() -> None:
        pool = ServerPool([s.url for s in servers], patience_s=patience_s, probe_s=probe_s)
        try:
            await pool.update(weights(pool, "first"))
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(run())


def weights(pool: ServerPool, name: str) -> Callable[[Server], Awaitable[None]]:
    async def take(server: Server) -> None:
        await pool.post(server, "/collective_rpc", {"method": "take_weights", "args": [name]})

    return take


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_requests_go_to_the_server_with_the_fewest(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        for server in servers:
            server.gate.clear()
        asked = [asyncio.ensure_future(pool.ask(TURN, ASK)) for _ in range(9)]
        await until(lambda: sum(len(s.turns) for s in servers) == 9)
        assert [len(s.turns) for s in servers] == [3, 3, 3]
        servers[1].gate.set()
        await until(lambda: sum(a.done() for a in asked) == 3)
        last = asyncio.ensure_future(pool.ask(TURN, ASK))
        await last
        assert len(servers[1].turns) == 4
        for server in servers:
            server.gate.set()
        await asyncio.gather(*asked)

    pooled(servers, body)


def test_a_tree_stays_on_one_server(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        trees = [f"1:{i}" for i in range(12)]
        for _ in range(3):
            await asyncio.gather(*(pool.ask(TURN, {**ASK, "tree": t}, t) for t in trees))
        for tree in trees:
            assert sum(any(t["tree"] == tree for t in s.turns) for s in servers) == 1
        assert [len(s.turns) for s in servers] == [12, 12, 12]

    pooled(servers, body)


def test_others_answer_for_a_dead_server_until_it_comes_back(
    servers: list[FakeServer],
) -> None:
    async def body(pool: ServerPool) -> None:
        servers[0].gate.clear()
        asked = [asyncio.ensure_future(pool.ask(TURN, ASK, f"tree {i}")) for i in range(9)]
        await until(lambda: len(servers[0].turns) == 3)
        await asyncio.to_thread(servers[0].die)
        servers[0].gate.set()
        await asyncio.gather(*asked)
        assert sum(len(s.turns) for s in servers[1:]) == 9  # six, and the three of the dead one
        assert len(servers[0].turns) == 3

        await pool.update(weights(pool, "second"))  # while it is away
        servers[0].start()
        await until(lambda: "second" in servers[0].weights)
        assert servers[0].weights == ["first", "second"]  # before any turn is asked of it
        await until(lambda: all(s.up for s in pool._servers))
        await asyncio.gather(*(pool.ask(TURN, ASK) for _ in range(9)))
        assert len(servers[0].turns) == 6

    pooled(servers, body)


def test_a_server_that_hangs_is_found_by_its_health(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        servers[0].gate.clear()
        asked = [asyncio.ensure_future(pool.ask(TURN, ASK)) for _ in range(3)]
        await until(lambda: len(servers[0].turns) == 1)
        servers[0].healthy = False
        await asyncio.gather(*asked)  # although its gate stays shut
        assert sum(len(s.turns) for s in servers[1:]) == 3

    pooled(servers, body)


def test_an_error_of_a_server_that_is_well_is_the_requests_own(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        for server in servers:
            server.fault = 400
        with pytest.raises(EngineError, match=r"answers 400: .*engine fault"):
            await pool.ask(TURN, ASK)
        assert sum(len(s.turns) for s in servers) == 1  # not tried elsewhere
        assert all(s.up for s in pool._servers)

    pooled(servers, body)


def test_a_failing_server_that_is_not_well_is_taken_out(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        servers[0].fault, servers[0].healthy = 500, False
        await asyncio.gather(*(pool.ask(TURN, ASK) for _ in range(3)))
        assert [s.up for s in pool._servers] == [False, True, True]

    pooled(servers, body, probe_s=5.0)


def test_where_all_are_down_requests_wait_and_then_fail(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        for server in servers:
            await asyncio.to_thread(server.die)
        with pytest.raises(EngineError, match=r"none of 3 vLLM servers was up for 0\.3 s"):
            await pool.ask(TURN, ASK)
        servers[2].start()
        await until(lambda: pool._servers[2].up)
        await pool.ask(TURN, ASK)

    pooled(servers, body, patience_s=0.3)


def test_a_server_that_does_not_take_the_weights_is_out_until_it_does(
    servers: list[FakeServer],
) -> None:
    async def body(pool: ServerPool) -> None:
        servers[1].on_weights = lambda: 500
        with pytest.warns(RuntimeWarning, match=f"{servers[1].url} is out: .*answers 500"):
            await pool.update(weights(pool, "second"))
        await asyncio.gather(*(pool.ask(TURN, ASK) for _ in range(6)))
        assert [len(s.turns) for s in servers] == [3, 0, 3]
        servers[1].on_weights = lambda: 200
        await until(lambda: pool._servers[1].up)
        assert servers[1].weights == ["first", "second"]
        for server in servers:
            server.on_weights = lambda: 500
        with pytest.raises(EngineError, match="no server took the weights"):
            await pool.update(weights(pool, "third"))

    pooled(servers, body)


def test_a_server_that_falls_silent_over_new_weights_is_out(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        silent, slow = servers[0], servers[1]
        loading = threading.Event()
        slow.on_weights = silent.on_weights = lambda: 200 if loading.wait(10) else 500
        silent.healthy = False
        updating = asyncio.ensure_future(pool.update(weights(pool, "second")))
        await until(lambda: not pool._servers[0].up)
        assert not updating.done()  # the slow one is well, and waited for
        slow.on_weights = lambda: 200
        loading.set()
        await updating
        assert pool._servers[1].up and slow.weights == ["first", "second"]

    pooled(servers, body, probe_s=0.2)


def test_a_caller_that_gives_up_leaves_nothing_behind(servers: list[FakeServer]) -> None:
    async def body(pool: ServerPool) -> None:
        for server in servers:
            server.gate.clear()
        asked = asyncio.ensure_future(pool.ask(TURN, ASK))
        await until(lambda: sum(len(s.turns) for s in servers) == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not any(s.requests for s in pool._servers)

    pooled(servers, body)
