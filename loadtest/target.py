"""The service under test: a confirmed address, and single calls outside the measurement."""

import asyncio
import ipaddress
import json
import socket
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from retrieval.errors import BadInput, one_line

# The client's view of the service's HTTP interface, which is public: see docs/ and /openapi.json.
PREDICT_PATH = "/predict"
PREDICT_KEY_HEADER, ADMIN_KEY_HEADER = "X-Api-Key", "X-Admin-Key"
CALL_SECONDS = 10.0  # timeout of one call outside the measurement


class Target(NamedTuple):
    """A service: the URL as given, its network name, and the address resolved once."""

    url: str
    name: str
    address: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str
    key: str | None  # sent with every request, if the service needs one

    @classmethod
    def resolve(cls, url: str, *, confirmed: bool = False, key: str | None = None) -> "Target":
        """Resolve `url` and try to connect; an address beyond loopback must be `confirmed`.

        Raises BadInput if it is not a URL, is not confirmed, or does not accept connections.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        except ValueError as error:
            raise BadInput(f"{url}: {one_line(error)}.") from error
        if not port or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise BadInput(f"{url} is not the URL of a service; give one such as http://127.0.0.1:8000.")
        addresses = _addresses(url, parts.hostname, port)
        if not confirmed and not all(map(_is_loopback, addresses)):
            raise BadInput(f"{url} is not on this machine. Confirm that you own it: --target-is-mine.")
        address = _first_listening(url, addresses, port)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return cls(url.rstrip("/"), parts.netloc, address, port, tls, parts.path.rstrip("/"), key)

    @property
    def host(self) -> str | None:
        """The name without the port, which a certificate must be for."""
        return urlsplit(f"//{self.name}").hostname

    def request(self, path: str, body: bytes | None, headers: str = "") -> bytes:
        """Build an HTTP request: POST, or GET without a body. `headers` are whole lines."""
        method = "GET" if body is None else "POST"
        head = f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {self.name}\r\nContent-Type: application/json\r\n"
        if self.key:
            head += f"{PREDICT_KEY_HEADER}: {self.key}\r\n"
        if body is None:
            return f"{head}{headers}\r\n".encode()
        return f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def call(
        self, path: str, body: bytes | None, headers: str = "", seconds: float = CALL_SECONDS
    ) -> tuple[int, Any]:
        """Send one request on a new connection; return the status and the parsed JSON, None if it is not JSON.

        Raises OSError without an answer within `seconds`.
        """
        answer = _Answer()
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(
                self.address, self.port, ssl=self.tls, server_hostname=self.host if self.tls else None
            )
            try:
                writer.write(self.request(path, body, f"Connection: close\r\n{headers}"))
                while not answer.complete:
                    answer.feed(await reader.read(65_536))
            finally:
                writer.close()
        return answer.parser.get_status_code(), answer.json()

    async def check(self, body: bytes) -> None:
        """Send one query before the run. Raises BadInput, with the service's message, unless the answer is a 200."""
        try:
            status, answer = await self.call(PREDICT_PATH, body)
        except OSError as error:
            raise BadInput(f"{self.url} gave no answer to POST /predict ({reason(error)}).") from error
        if status != 200:
            raise BadInput(f"{self.url} answered POST /predict with {status}: {error_message(answer)}")


class _Answer:
    """An answer with its body; httptools calls the `on_` methods."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.complete = False
        self._body = b""

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the connection ended before the answer did")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError("the answer is not HTTP") from error

    def json(self) -> Any:
        try:
            return json.loads(self._body)
        except ValueError:
            return None

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.complete = True


def reason(error: OSError) -> str:
    """Return a system error's message as part of a sentence."""
    return "it took too long" if isinstance(error, TimeoutError) else one_line(error.strerror or error)


def error_message(answer: Any) -> str:
    """Return the message of an error answer."""
    try:
        return str(answer["error"]["message"])
    except (TypeError, KeyError, IndexError):
        return "it does not answer as diptych does."


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _addresses(url: str, host: str, port: int) -> list[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise BadInput(f"{url}: the name {host} has no address ({reason(error)}).") from error


def _first_listening(url: str, addresses: list[str], port: int) -> str:
    """Return the first address that accepts a connection; a name such as localhost has several."""
    failure = ""
    for address in addresses:
        try:
            socket.create_connection((address, port), CALL_SECONDS).close()
        except OSError as error:
            failure = reason(error)
        else:
            return address
    raise BadInput(f"Nothing answers at {url} ({failure}). Start it with `diptych serve`, or give another URL.")
