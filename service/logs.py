"""Log lines: one JSON object each, or text for a person at a terminal; those of a request carry its id."""

import logging
import sys
from contextvars import ContextVar
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

Form = Literal["auto", "json", "text"]
FORMAT = "DIPTYCH_LOG_FORMAT"  # tells an engine what its front was told
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure(form: Form) -> None:
    """Write every record of this process, whichever library made it, to stderr; `auto` is text on a terminal only."""
    render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())] if as_text(form) else _as_json()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_the_request,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def as_text(form: Form) -> bool:
    """Whether lines are for a person."""
    return form == "text" or (form == "auto" and sys.stderr.isatty())


def _as_json() -> list[structlog.typing.Processor]:
    return [structlog.processors.ExceptionRenderer(), structlog.processors.JSONRenderer(ensure_ascii=False)]


def _name_the_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if request_id := REQUEST_ID.get():
        event["request_id"] = request_id
    return event
