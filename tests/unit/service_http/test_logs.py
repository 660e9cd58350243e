"""Log lines of requests, and the escaping of clients' text in them."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import RequestMiddleware
from service.observe.logs import configure
from service.observe.metrics import Metrics
from service.settings import Settings


async def unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=503)(scope, receive, send)


async def empty_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def discard(message: Message) -> None:
    assert message["type"].startswith("http.response")


@pytest.mark.parametrize(
    ("logged", "lines"), [("failures", ["/predict"]), ("all", ["/readyz", "/predict"]), ("none", [])]
)
def test_not_ready_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, logged: str, lines: list[str]
) -> None:
    """If it fails, waiting for a service to start fills its log with warnings, or a real failure is not logged."""
    settings = Settings(store=tmp_path, log_requests=logged)
    layer = RequestMiddleware(
        unavailable, settings, Metrics(CollectorRegistry()), None, frozenset({"/readyz", "/predict"})
    )
    with caplog.at_level(logging.INFO, "diptych.request"):
        for path in ("/readyz", "/predict"):
            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": ("127.0.0.1", 1)}
            asyncio.run(layer(scope, empty_body, discard))  # type: ignore[arg-type]
    assert [record.path for record in caplog.records] == lines  # type: ignore[attr-defined]


FORGED = "2026-01-01T00:00:00Z [info     ] administration [diptych.audit] key=admin"
HOSTILE = [f"a\n{FORGED}", f"a\r{FORGED}", "\x1b[2Jgone\x07", "a\x7fb\x85c\x9b31m", "a\u2028b\u202ec", "\ud800 half"]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_client_forges_a_log_line_or_controls_a_terminal(
    form: Any, text: str, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    """A client could write log lines that look like an administrator's, or control the terminal that shows the log."""
    configure(form)
    log = logging.getLogger("diptych.request")
    log.info("path %s", text, extra={"path": text, "queries": [text], text: 1})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    written = capsys.readouterr().err
    lines = written.split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith(FORGED[:10]) and FORGED in line[:90] for line in lines)
    if form == "json":
        first, second = (json.loads(line) for line in lines[:-1])
        assert (first["path"], first["queries"], first["event"]) == (text, [text], f"path {text}")
        assert second["exception"].endswith(f"ValueError: {text}")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
