"""Which requests get a line in the log."""

import asyncio
import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.exchange import Exchanges
from service.metrics import Metrics
from service.settings import Settings


async def unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=503)(scope, receive, send)


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nobody(message: Message) -> None:
    assert message["type"].startswith("http.response")


@pytest.mark.parametrize(
    ("logged", "lines"), [("failures", ["/predict"]), ("all", ["/readyz", "/predict"]), ("none", [])]
)
def test_not_ready_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, logged: str, lines: list[str]
) -> None:
    """If it fails, waiting for a service to start fills its log with warnings, or a real failure leaves no line."""
    settings = Settings(store=tmp_path, log_requests=logged)
    layer = Exchanges(unavailable, settings, Metrics(CollectorRegistry()), None, frozenset({"/readyz", "/predict"}))
    with caplog.at_level(logging.INFO, "diptych.request"):
        for path in ("/readyz", "/predict"):
            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": ("127.0.0.1", 1)}
            asyncio.run(layer(scope, nothing, nobody))  # type: ignore[arg-type]
    assert [record.path for record in caplog.records] == lines  # type: ignore[attr-defined]
