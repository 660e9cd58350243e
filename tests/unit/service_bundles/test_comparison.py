"""The bundle that is open for comparison is closed for one that is served."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from service.bundles.comparison import Comparison
from service.bundles.generation import Generation, GenerationObserver
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor


def test_requests_that_wait_for_an_opening_end_with_it() -> None:
    """A rollback would wait until a bundle is loaded for comparison."""
    opened: list[str] = []

    async def hang(name: str, _: GenerationObserver) -> Generation:
        opened.append(name)
        await asyncio.Event().wait()
        raise AssertionError("the event is never set")

    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        supervisor = Supervisor(metrics)
        comparison = Comparison(hang, metrics, 60, supervisor)
        async with asyncio.timeout(60):
            requests = [asyncio.ensure_future(comparison.open("one")) for _ in range(3)]
            while not opened:
                await asyncio.sleep(0)
            await comparison.close()
            for request in requests:
                with pytest.raises(Refusal) as refused:
                    await request
                assert (refused.value.status, refused.value.code) == (409, "busy_switching")
            await supervisor.close()

    asyncio.run(main())
    assert opened == ["one"]
