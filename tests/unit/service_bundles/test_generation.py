"""One open bundle: its engine is replaced when it dies, its requests are answered, its paused labels are sent."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from retrieval.errors import BundleError
from service.bundles.generation import Generation
from service.bundles.lifecycle import State
from service.bundles.paused_labels import PausedBroadcaster
from service.bundles.store_access import StoreAccess
from service.engine.client import EngineObserver
from service.engine.load_policy import FULL_SPEED, LoadPolicy
from service.engine.protocol import (
    BatchAnswers,
    BundleInfo,
    FrameKind,
    FrameSplitter,
    Outcome,
    Query,
    QueryAnswer,
    Stages,
    decode_batch,
    decode_paused,
)
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings
from tests.support.bundles import make_store

INFO = BundleInfo(3, 8, 1.0, 512, False, 1, 0.0, 0.5, [])
NO_TIME = Stages(0, 0, 0, 0, 0, 0, 0)


class FakeEngine:
    """An engine process that the test plays."""

    info, pid, exit_reason = INFO, 1, "by SIGKILL"

    def __init__(self, observer: EngineObserver) -> None:
        self.observer = observer
        self.frames: list[tuple[FrameKind, bytes]] = []
        self.ended = False

    def send(self, frame: bytes) -> None:
        self.frames += FrameSplitter().feed(frame)

    def counts_as_crash(self) -> bool:
        return True

    async def end(self) -> None:
        self.ended = True

    def answer(self) -> None:
        """Answer the last batch: each text's result is the text itself."""
        kind, payload = self.frames[-1]
        assert kind is FrameKind.BATCH
        batch = decode_batch(payload)
        answers = [QueryAnswer(Outcome.ANSWERED, ",".join(query.texts).encode()) for query in batch.queries]
        self.observer.on_answers(BatchAnswers(batch.number, NO_TIME, answers))


class Bench:
    """A generation, its engines, and the events that its observer received."""

    def __init__(self, store: Path, **settings: Any) -> None:
        self.engines: list[FakeEngine] = []
        self.events: list[str] = []
        self.failures: list[Exception] = []  # raised by the next starts of an engine
        self.reported: list[str | None] = []  # the failure that the generation reported at each start
        self.started = asyncio.Event()
        metrics = Metrics(CollectorRegistry())
        self.supervisor = Supervisor(metrics)
        self.paused = PausedBroadcaster(StoreAccess(store, ()), 10, self.supervisor)
        start: Any = self._start
        self.generation = Generation(
            7,
            store / "bundles" / "one",
            Settings(store=store, **settings),
            metrics=metrics,
            supervisor=self.supervisor,
            paused=self.paused,
            observer=self,
            choose_policy=lambda _: FULL_SPEED,
            start_engine=start,
        )

    async def _start(self, folder: Path, settings: Settings, observer: EngineObserver, policy: LoadPolicy) -> Any:
        self.reported.append(self.generation.failure)
        if self.failures:
            raise self.failures.pop()
        self.engines.append(FakeEngine(observer))
        self.started.set()
        return self.engines[-1]

    async def kill(self) -> None:
        """End the engine unexpectedly; wait for the next one."""
        self.started.clear()
        self.engines[-1].observer.on_engine_death()
        await self.started.wait()

    def on_open(self, generation: Generation) -> None:
        self.events.append("open")

    def on_engine_death(self, generation: Generation) -> None:
        self.events.append("engine death")

    def on_crash_loop(self, generation: Generation) -> None:
        self.events.append("crash loop")

    def on_closed(self, generation: Generation) -> None:
        self.events.append("closed")


def played(store: Path, body: Callable[[Bench], Awaitable[None]], **settings: Any) -> Bench:
    """Run `body` with a bench; return the bench."""

    async def inside() -> Bench:
        bench = Bench(store, **settings)
        async with asyncio.timeout(60):
            await body(bench)
            await bench.supervisor.close()
        return bench

    return asyncio.run(inside())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("generation") / "store", "one").path


def test_a_request_is_answered_although_its_engine_dies(store: Path) -> None:
    """A crash in native code would fail the requests of its batch."""

    async def body(bench: Bench) -> None:
        await bench.generation.open()
        request = bench.generation.admit(Query.create(["red"], 1))
        await bench.kill()
        assert bench.engines[0].ended
        bench.engines[1].answer()
        assert await request.answer == b"red"
        assert bench.generation.healthy

    assert played(store, body).events == ["open", "engine death"]


def test_paused_labels_are_sent_before_the_first_batch_and_after_each_change(store: Path) -> None:
    """An answer would contain a paused label, or a change while a switch is recorded would be missed."""

    async def body(bench: Bench) -> None:
        await bench.paused.change(["a"], [])
        generation = await bench.generation.open()
        generation.admit(Query.create(["red"], 1))
        assert [kind for kind, _ in bench.engines[0].frames] == [FrameKind.PAUSED, FrameKind.BATCH]
        version = generation.pause_version
        await bench.paused.change(["b"], [])
        assert decode_paused(bench.engines[0].frames[-1][1]) == ["a", "b"]
        assert generation.pause_version == version + 1
        bench.engines[0].observer.on_paused(["a"])  # the first list; the second is not acknowledged yet
        assert await generation.wait_for_unknown_ids(0.01) is None
        bench.engines[0].observer.on_paused(["b"])
        assert await generation.wait_for_unknown_ids(60) == ["b"]
        await bench.paused.change([], ["a", "b"])

    played(store, body)


def test_a_bundle_whose_engines_keep_dying_is_reported(store: Path) -> None:
    """A faulty bundle would be served forever although an earlier one works."""

    async def body(bench: Bench) -> None:
        await bench.generation.open()
        for _ in range(2):
            await bench.kill()

    assert played(store, body, crashes=2).events == ["open", "engine death", "engine death", "crash loop"]


def test_the_reason_is_known_while_no_engine_can_be_started(store: Path) -> None:
    """Requests would wait without an answer, and /readyz would not show the reason."""

    async def body(bench: Bench) -> None:
        await bench.generation.open()
        bench.failures.append(BundleError("index.hnsw is damaged"))
        await bench.kill()
        assert bench.reported == [None, None, "index.hnsw is damaged"]
        assert bench.generation.healthy

    played(store, body)


def test_a_generation_is_closed_after_its_last_answer(store: Path) -> None:
    """A switch would fail requests that the previous bundle has admitted, or its engine would never end."""

    async def body(bench: Bench) -> None:
        generation = await bench.generation.open()
        request = generation.admit(Query.create(["red"], 1))
        closing = asyncio.ensure_future(generation.close())
        await asyncio.sleep(0)
        assert generation.state is State.DRAINING
        assert not bench.engines[0].ended
        bench.engines[0].answer()
        await closing
        assert await request.answer == b"red"
        assert generation.state is State.CLOSED
        assert bench.engines[0].ended
        frames = len(bench.engines[0].frames)
        await bench.paused.change(["a"], [])
        await bench.paused.change([], ["a"])
        assert len(bench.engines[0].frames) == frames  # it is not subscribed any more
        with pytest.raises(RuntimeError, match="cannot change from closed to serving"):
            await generation.open()

    assert played(store, body).events == ["open", "closed"]


def test_a_generation_that_does_not_open_is_closed(store: Path) -> None:
    """A bundle that cannot be opened would receive paused labels forever."""

    async def body(bench: Bench) -> None:
        bench.failures.append(BundleError("index.hnsw is damaged"))
        with pytest.raises(BundleError, match="is damaged"):
            await bench.generation.open()
        assert bench.generation.state is State.CLOSED

    assert played(store, body).events == []
