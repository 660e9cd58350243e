"""Log lines as JSON objects, or as text on a terminal. Lines of a request include its id.

Paths, queries and exception messages come from clients. Their characters must not start a new line or control the
terminal, so non-printable characters are escaped.
"""

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

Form = Literal["auto", "json", "text"]
FORMAT = "DIPTYCH_LOG_FORMAT"  # the variable that passes the front's format to its engines
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure(form: Form) -> None:
    """Write all log records of this process, also those of libraries, to stderr. `auto`: text only on a terminal."""
    render = _as_text() if as_text(form) else _as_json()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_request_id,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def as_text(form: Form) -> bool:
    """Return whether log lines are text and not JSON."""
    return form == "text" or (form == "auto" and sys.stderr.isatty())


def escaped(text: str) -> str:
    """Return the text with non-printable characters escaped as in JSON."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    written = json.dumps(character)[1:-1]
    return f"\\u{ord(character):04x}" if written == character else written  # DEL, which JSON does not escape


def _as_json() -> list[structlog.typing.Processor]:
    return [structlog.processors.ExceptionRenderer(), structlog.processors.JSONRenderer(_json)]


def _as_text() -> list[structlog.typing.Processor]:
    colours = sys.stderr.isatty()
    return [_escape_values, structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=_write_traceback)]


def _json(event: EventDict, **options: Any) -> str:
    # JSON escapes only the first 32 code points, not line separators, direction marks or lone surrogates
    return escaped(json.dumps(event, ensure_ascii=False, **options))


def _escape_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {escaped(name): value if name == "exc_info" else _escape_value(value) for name, value in event.items()}


def _escape_value(value: object) -> object:
    if isinstance(value, str):
        return escaped(value)
    return value if isinstance(value, int | float | None) else escaped(repr(value))


def _write_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Write a traceback indented, so that line breaks in its messages do not look like log lines."""
    for part in traceback.format_exception(*exc_info):
        for line in part.splitlines():
            stream.write(f"\n    {escaped(line)}")


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if request_id := REQUEST_ID.get():
        event["request_id"] = request_id
    return event
