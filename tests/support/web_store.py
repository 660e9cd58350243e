"""A folder behind a real HTTP server on the loopback, which can be told to misbehave at a path.

with web_store(folder) as web:
    web.instead["/CURRENT"] = endless
    open_bundle(web.url, cache=cache)
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

Instead = Callable[["Handler"], None]


@dataclass
class WebStore:
    """The store's URL, the requests so far, and functions that handle a path in place of the file server."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: int = 0  # bytes of answers that were made up
    instead: dict[str, Instead] = field(default_factory=dict)
    ranges: bool = False  # whether parts of files are given
    parts: list[tuple[str, int]] = field(default_factory=list)  # files that were asked for from a byte on


class Handler(SimpleHTTPRequestHandler):
    """Files of one folder; ranges only where the store gives them, so that a file comes as one stream by default."""

    def __init__(self, *arguments: object, web: WebStore, directory: Path) -> None:
        self.web = web
        super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        self.web.instead.get(self.path, Handler.as_it_is)(self)

    def as_it_is(self) -> None:
        if self.web.ranges and (asked := self.headers.get("Range")):
            self.part(asked)
        else:
            super().do_GET()

    def part(self, asked: str, most: int | None = None) -> None:
        """Send the bytes of a file that a Range header asks for; the connection ends after `most` of them."""
        first, last = asked.removeprefix("bytes=").split("-")
        content = Path(self.translate_path(self.path)).read_bytes()
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        self.web.parts.append((self.path, start))
        self.send_response(206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:stop][:most])
        self.close_connection = most is not None

    def do_HEAD(self) -> None:
        if self.web.instead.get(self.path) is failing:
            failing(self)
        else:
            super().do_HEAD()

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes" if self.web.ranges else "none")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def begin(self, length: int | None = None) -> BinaryIO:
        """Send the head of an answer that says it has `length` bytes, or does not say; returns where its body goes."""
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        return self.wfile  # type: ignore[return-value]


def endless(handler: Handler) -> None:
    """Send digits for as long as the client reads them."""
    body = handler.begin()
    try:
        while True:
            handler.web.sent += body.write(b"0123456789" * 6_553)
    except OSError:
        handler.close_connection = True


def cut_off(handler: Handler) -> None:
    """Send a few bytes of the announced length, then close the connection."""
    handler.begin(1_000_000).write(b"begun")
    handler.close_connection = True


def failing(handler: Handler) -> None:
    """Answer 503."""
    handler.send_error(503)


@contextmanager
def web_store(folder: Path) -> Iterator[WebStore]:
    """Serve a folder until the block ends."""
    web = WebStore()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web=web, directory=folder)) as server:
        server.daemon_threads = True
        web.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
