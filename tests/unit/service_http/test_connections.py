"""The pool of connections: pipelined turns, and connections that are closed for new ones."""

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from service.connections.connection import Connection
from service.connections.pool import ConnectionPool
from service.observe.metrics import Metrics
from service.settings import Settings


class FakeConnection:
    """A connection that is stalled since the start and counts how often it is looked at."""

    def __init__(self, now: float = 0.0) -> None:
        self.stalled_since = now
        self.searched = self.turns = 0

    @property
    def idle(self) -> bool:
        self.searched += 1
        return False

    def read_next_request(self) -> None:
        self.turns += 1


def new_pool(**settings: Any) -> ConnectionPool:
    metrics = Metrics(CollectorRegistry())
    return ConnectionPool(Settings(store="s", **settings), metrics, lambda: False, lambda _: False)


def test_connections_that_close_before_their_turn_leave_no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that opens and closes pipelined connections would get more turns per second."""

    async def main() -> None:
        loop, pool = asyncio.get_running_loop(), new_pool()
        timers: list[Any] = []
        call_later = loop.call_later

        def counted(*arguments: Any) -> asyncio.TimerHandle:
            timers.append(arguments)
            return call_later(*arguments)

        monkeypatch.setattr(loop, "call_later", counted)
        for _ in range(50):
            gone = cast(Connection, FakeConnection())
            pool.schedule_turn(gone)
            pool.remove(gone)
        waiting = [FakeConnection() for _ in range(5)]
        for one in waiting:
            pool.schedule_turn(cast(Connection, one))
        assert len(timers) == 1
        async with asyncio.timeout(60):
            while not all(one.turns for one in waiting):
                await asyncio.sleep(0)
        assert [one.turns for one in waiting] == [1] * 5
        assert len(timers) <= 6

    asyncio.run(main())


def test_an_unsuccessful_search_is_not_repeated_immediately() -> None:
    """At the limit, each new connection would cost a search of thousands of others."""

    async def main() -> None:
        pool = new_pool(max_connections=1)
        busy = FakeConnection(asyncio.get_running_loop().time())
        assert pool.add(cast(Connection, busy)) is None
        pool.note_first_request(cast(Connection, busy))
        refusals = [pool.add(cast(Connection, FakeConnection())) for _ in range(50)]
        assert {one.code for one in refusals if one} == {"too_many_connections"}
        assert busy.searched < 50

    asyncio.run(main())
