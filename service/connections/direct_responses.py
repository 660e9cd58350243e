"""Build responses that a connection sends without the application."""

import http

from service.errors import Refusal
from service.request_context import new_request_id

CLOSE = b"connection: close\r\n\r\n"


def closing_response(refusal: Refusal, seconds: float, without_body: bool = False) -> bytes:
    """Return a complete response that closes the connection, `seconds` after its request began. HEAD has no body."""
    body = b"" if without_body else bytes(refusal.response().body)
    return response_head(refusal) + common_headers(new_request_id(), seconds) + CLOSE + body


def response_head(refusal: Refusal) -> bytes:
    """Return the status line and headers of a refusal, without the empty line."""
    phrase = http.HTTPStatus(refusal.status).phrase
    lines = [f"HTTP/1.1 {refusal.status} {phrase}".encode()]
    lines += [b"%b: %b" % header for header in refusal.response().raw_headers]
    return b"".join(line + b"\r\n" for line in lines)


def common_headers(request_id: bytes, seconds: float) -> bytes:
    """Return the headers of every response, `seconds` after its request began."""
    return b"x-request-id: %b\r\nserver-timing: total;dur=%.3f\r\n" % (request_id, seconds * 1e3)
