"""Serve a folder by HTTP on the loopback, with configurable faults per path.

with web_store(folder) as web:
    web.handlers["/CURRENT"] = endless
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

Respond = Callable[["Handler"], None]


@dataclass
class WebStore:
    """The store's URL, the requests so far, and functions that handle a path in place of the file server."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    generated_bytes: int = 0  # sent by `endless`
    handlers: dict[str, Respond] = field(default_factory=dict)
    ranges: bool = False  # whether Range headers are supported
    range_requests: list[tuple[str, int]] = field(default_factory=list)  # path and first byte


class Handler(SimpleHTTPRequestHandler):
    """Serve the files of a folder. Ranges are supported only if the store enables them."""

    def __init__(self, *arguments: object, web: WebStore, directory: Path) -> None:
        self.web = web
        super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.web.requests.append(self.path)
        self.web.handlers.get(self.path, Handler.serve_file)(self)

    def serve_file(self) -> None:
        if self.web.ranges and (header := self.headers.get("Range")):
            self.serve_range(header)
        else:
            super().do_GET()

    def serve_range(self, header: str, most: int | None = None) -> None:
        """Send the bytes of a file that a Range header asks for; the connection ends after `most` of them."""
        first, last = header.removeprefix("bytes=").split("-")
        content = Path(self.translate_path(self.path)).read_bytes()
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        self.web.range_requests.append((self.path, start))
        self.send_response(206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:stop][:most])
        self.close_connection = most is not None

    def do_HEAD(self) -> None:
        if self.web.handlers.get(self.path) is failing:
            failing(self)
        else:
            super().do_HEAD()

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes" if self.web.ranges else "none")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def begin(self, length: int | None = None) -> BinaryIO:
        """Send the headers of a response, with a length if one is given; return the stream for its body."""
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
            handler.web.generated_bytes += body.write(b"0123456789" * 6_553)
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
