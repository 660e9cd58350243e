"""What is aimed at: an address that is the caller's own, and calls to it outside the measurement."""

import asyncio
import ipaddress
import json
import socket
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from retrieval.errors import BadInput, one_line
from service.access.key_headers import PREDICT_HEADER

PATIENCE = 10.0  # seconds for one call outside the measurement


class Target(NamedTuple):
    """A service: its URL as shown, the name it goes by, and the address that was looked up once."""

    url: str
    name: str
    address: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str
    key: str | None  # to ask with, where the service wants one

    @classmethod
    def find(cls, url: str, *, mine: bool = False, key: str | None = None) -> "Target":
        """Look `url` up and try to connect.

        Raises BadInput when it is no URL, when nobody listens, and when it may be somebody else's.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        except ValueError as error:
            raise BadInput(f"{url}: {one_line(error)}.") from error
        if not port or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise BadInput(f"{url} is not the URL of a service; give one such as http://127.0.0.1:8000.")
        addresses = _addresses(url, parts.hostname, port)
        foreign = [one for one in addresses if not ipaddress.ip_address(one.partition("%")[0]).is_loopback]
        if foreign and not mine:
            raise BadInput(f"{url} is not on this machine. If it is your own, say so with --target-is-mine.")
        address = _that_listens(url, addresses, port)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return cls(url.rstrip("/"), parts.netloc, address, port, tls, parts.path.rstrip("/"), key)

    @property
    def host(self) -> str | None:
        """The name without the port, which a certificate must be for."""
        return urlsplit(f"//{self.name}").hostname

    def request(self, path: str, body: bytes | None, headers: str = "") -> bytes:
        """A whole HTTP request, a GET without a body; `headers` are lines with their ends."""
        method = "GET" if body is None else "POST"
        head = f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {self.name}\r\nContent-Type: application/json\r\n"
        if self.key:
            head += f"{PREDICT_HEADER}: {self.key}\r\n"
        if body is None:
            return f"{head}{headers}\r\n".encode()
        return f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def call(
        self, path: str, body: bytes | None, headers: str = "", patience: float = PATIENCE
    ) -> tuple[int, Any]:
        """One request on a connection of its own: the status and the parsed answer, None unless it is JSON.

        Raises OSError when there is no answer within `patience` seconds.
        """
        answer = _Answer()
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(
                self.address, self.port, ssl=self.tls, server_hostname=self.host if self.tls else None
            )
            try:
                writer.write(self.request(path, body, f"Connection: close\r\n{headers}"))
                while not answer.whole:
                    answer.feed(await reader.read(65_536))
            finally:
                writer.close()
        return answer.parser.get_status_code(), answer.parsed()

    async def check(self, body: bytes) -> None:
        """Ask once before anything is measured. BadInput when the answer is not a 200, with what the service said."""
        try:
            status, answer = await self.call("/predict", body)
        except OSError as error:
            raise BadInput(f"{self.url} gave no answer to POST /predict ({why(error)}).") from error
        if status != 200:
            raise BadInput(f"{self.url} answered POST /predict with {status}: {said(answer)}")


class _Answer:
    """An answer with its body, as httptools reads it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.whole = False
        self._body = b""

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the connection ended before the answer did")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError("the answer is not HTTP") from error

    def parsed(self) -> Any:
        try:
            return json.loads(self._body)
        except ValueError:
            return None

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.whole = True


def why(error: OSError) -> str:
    """What an error of the system says, for the inside of a sentence."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    return one_line(error.strerror or error)


def said(answer: Any) -> str:
    """The sentence in an answer that is not a success."""
    try:
        return str(answer["error"]["message"])
    except (TypeError, KeyError, IndexError):
        return "it does not answer as diptych does."


def _addresses(url: str, host: str, port: int) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise BadInput(f"{url}: the name {host} has no address ({why(error)}).") from error


def _that_listens(url: str, addresses: list[str], port: int) -> str:
    """The first address that takes a connection: a name such as localhost stands for several."""
    reason = ""
    for address in addresses:
        try:
            socket.create_connection((address, port), PATIENCE).close()
        except OSError as error:
            reason = why(error)
        else:
            return address
    raise BadInput(f"Nothing answers at {url} ({reason}). Start it with `diptych serve`, or give another URL.")
