"""Error responses, all in one format: {"error": {"code": ..., "message": ...}}."""

import random
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.responses import Response

DEADLINE_EXCEEDED = "deadline_exceeded"
JITTER_SECONDS = 2  # most seconds added to a short Retry-After
SHOWN_CHARS = 60  # of a caller's text that are repeated in an error message


class Refusal(Exception):
    """An error response: a status, a code for programs and a message of one sentence."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def response(self) -> Response:
        """Return the HTTP response."""
        body = to_json({"error": {"code": self.code, "message": self.message}})
        headers = {"Cache-Control": "no-store", **(self.headers or {})}
        return Response(body, self.status, headers, media_type="application/json")


def retry_after(seconds: int = 1) -> dict[str, str]:
    """Return a Retry-After of `seconds` plus jitter, so that refused clients do not retry all at once."""
    return {"Retry-After": str(random.randint(seconds, longest_retry(seconds)))}


def longest_retry(seconds: int = 1) -> int:
    """Return the longest Retry-After for `seconds`."""
    return seconds + max(JITTER_SECONDS, seconds // 4)


def overloaded(waiting: str, seconds: int | None = None) -> Refusal:
    """Return the 429 for a full queue. `waiting` names what waits: texts, tokens or bytes."""
    message = f"The service is busy: {waiting} already wait. Try again in a second."
    return Refusal(429, "overloaded", message, {"Retry-After": str(seconds)} if seconds else retry_after())


def unavailable(reason: str) -> Refusal:
    """Return the 503 for a service that cannot answer now."""
    return Refusal(503, "unavailable", reason, retry_after())


def index_unavailable(bundle: str) -> Refusal:
    """Return the 503 for a search that the server of the index did not answer."""
    message = f"The index server of bundle {bundle} does not answer. Try again in a second."
    return Refusal(503, "index_unavailable", message, retry_after())


def too_late(seconds: float, by_client: bool) -> Refusal:
    """Return the 504 for a missed deadline, the service's or the client's.

    The client's deadline is not a failure of the service. The status is not 408, because many clients repeat a request
    immediately after 408.
    """
    return Refusal(504, DEADLINE_EXCEEDED if by_client else "too_late", f"No answer was ready within {seconds:g} s.")


def quarantined(text: str) -> Refusal:
    """Return the 422 for a text in quarantine."""
    message = f"The text {_shown(text)!r} was in progress when two engines crashed; it is not answered for an hour."
    return Refusal(422, "quarantined", message)


def answer_too_large(limit: int) -> Refusal:
    """Return the 422 for an answer with more than `limit` bytes."""
    message = f"The answer has more than {limit} bytes; send fewer texts or a smaller k."
    return Refusal(422, "answer_too_large", message)


def broken() -> Refusal:
    """Return the 500 for an unexpected exception."""
    return Refusal(500, "internal", "The service failed on this request; see its log.")


# pydantic's error type → (code, message). {where} is the field and {value} its value; pydantic provides the others.
MESSAGES = {
    "model_type": ("wrong_type", "The body must be a JSON object with the fields of this request."),
    "missing": ("missing_field", "{where} is missing."),
    "extra_forbidden": ("unknown_field", "{where} is not a field of this request; leave it out."),
    "list_type": ("wrong_type", "{where} must be a list of texts."),
    "too_short": ("no_queries", "{where} is empty; send at least one text."),
    "too_long": ("too_many_queries", "{where} has more than {max_length} texts; send them in several requests."),
    "string_type": ("wrong_type", "{where} must be a text."),
    "string_too_short": ("empty_text", "{where} is empty; give it text or leave it out."),
    "string_too_long": ("text_too_long", "{where} is longer than {max_length} characters; shorten it."),
    "int_type": ("wrong_type", "{where} must be a whole number."),
    "int_parsing_size": ("out_of_range", "{where} is out of range."),
    "float_type": ("wrong_type", "{where} must be a number."),
    "finite_number": ("out_of_range", "{where} must be a finite number."),
    "greater_than_equal": ("out_of_range", "{where} is {value}; the minimum is {ge}."),
    "less_than_equal": ("out_of_range", "{where} is {value}; the maximum is {le}."),
}
PATTERN_MESSAGES = {
    "queries": ("blank_text", "{where} is blank; give it text or leave it out."),
    "bundle": (
        "bad_name",
        "{where} is not a bundle name; use at most 64 letters, digits, dots, dashes and underscores.",
    ),
}

FILTER_MESSAGES = {
    "dict_type": "{where} must be an object: attributes, each with a list of values.",
    "list_type": "{where} must be a list of values.",
    "too_short": "{where} is empty; give it a value or leave it out.",
    "too_long": "{where} has more than {max_length} entries.",
}


def refusal(error: ValidationError) -> Refusal:
    """Return the refusal for the first error in a body: 400 when it is not JSON, else 422."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "not_json", f"The body is not JSON: {first['ctx']['error']}.")
    code, message = _template(first)
    context = {"where": _where(first), "value": _shown(first["input"]), **first.get("ctx", {})}
    return Refusal(422, code, message.format(**context))


def _template(error: ErrorDetails) -> tuple[str, str]:
    if error["loc"][:1] == ("filter",):
        return "bad_filter", FILTER_MESSAGES.get(error["type"], "{where} must be a text, a number, true or false.")
    if error["type"] == "string_pattern_mismatch":
        return PATTERN_MESSAGES[str(error["loc"][0])]
    return MESSAGES.get(error["type"], ("bad_value", "{where} is invalid."))


def _where(error: ErrorDetails) -> str:
    # for a filter, pydantic adds the expected type after attribute and position
    field, *inside = error["loc"][: 3 if error["loc"][:1] == ("filter",) else None] or ("the body",)
    return _shown(field) + "".join(f"[{_shown(position)}]" for position in inside)


def _shown(value: object) -> str:
    """Return a number or the beginning of a text; of another value, which may be large, only its type."""
    text = str(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
