"""Hold NUMBER hostile connections of one kind open, in a separate process.

python -m benchmarks.measuring.serving.hostile_clients PORT KIND NUMBER

Prints `open` once NUMBER connections have been made. A connection that the service closes is opened again after a
pause. The process ends when its standard input ends, so it does not outlive its parent.
"""

import asyncio
import os
import random
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, cast

import uvloop

HEAD = b"POST /predict HTTP/1.1\r\nHost: hostile\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = 1_000_000
BYTE_INTERVAL = 2.0  # seconds between two bytes of a connection
PAUSE = 10.0  # mean seconds before a closed connection is opened again
OPENING = 32  # connections that are opened at the same time
NICENESS = 10  # so that the load generator, which measures, has priority


@dataclass(frozen=True)
class Attack:
    """`first` is sent at once, `more` every two seconds after that; answers are read only if `reads`."""

    first: bytes
    more: bytes = b""
    reads: bool = True


KINDS = {
    "half-sent heads of tiny headers": Attack(HEAD + b"a:b\r\n" * 90, b"c"),
    "endless heads of tiny headers": Attack(HEAD + b"a:b\r\n" * 20_000, b"a:b\r\n"),
    "half-sent heads of 32 kB": Attack(HEAD + b"X-Large: " + b"x" * 32_000, b"x"),
    "endless trailers": Attack(CHUNKED + b"0\r\n" + b"a: b\r\n" * 90, b"a: b\r\n" * 100),
    "stalled bodies of 1 MB": Attack(HEAD + b"Content-Length: %d\r\n\r\n" % MEGABYTE + b" " * (MEGABYTE - 100), b" "),
    "chunks of one byte": Attack(CHUNKED + b"1\r\n \r\n" * 3_000, b"1\r\n \r\n"),
    "endless chunk extensions": Attack(CHUNKED + b"1;" + b"x" * MEGABYTE, b"x"),
    "pipelined requests": Attack(b"GET /livez HTTP/1.1\r\nHost: hostile\r\n\r\n" * 2_000),
    "answers that are never read": Attack(b"GET /openapi.json HTTP/1.1\r\nHost: hostile\r\n\r\n" * 400, reads=False),
    "a byte every two seconds": Attack(HEAD + b"X-Slow: ", b"x"),
}


class HostileClients:
    """Context manager that runs this module as a process."""

    def __init__(self, port: int, kind: str, number: int) -> None:
        self._command = [sys.executable, "-m", __name__, str(port), kind, str(number)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        if not self._process.stdout.readline():
            raise AssertionError(f"the hostile clients ended with code {self._process.wait()}.")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input
        self._process.wait(30)


class HostileConnection(asyncio.Protocol):
    """One hostile connection of a kind; sets `ended` when the service closes it."""

    def __init__(self, kind: Attack, ended: asyncio.Event) -> None:
        self._kind = kind
        self._ended = ended
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._kind.reads:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self._transport.pause_reading()
        self._transport.write(self._kind.first)

    def eof_received(self) -> None:
        self._ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()

    def trickle(self) -> None:
        """Send `more`, if everything before it has been sent."""
        transport = self._transport
        if transport and self._kind.more and not transport.is_closing() and not transport.get_write_buffer_size():
            transport.write(self._kind.more)

    def close(self) -> None:
        """End the connection at once."""
        if self._transport:
            self._transport.abort()


async def _one(port: int, kind: Attack, opening: asyncio.Semaphore, opened: "asyncio.Queue[None]") -> None:
    """Hold one connection; open it again whenever it is closed."""
    while True:
        ended = asyncio.Event()
        connection = HostileConnection(kind, ended)
        try:
            async with opening:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda made=connection: made, "127.0.0.1", port)  # type: ignore[misc]
            opened.put_nowait(None)
            while not ended.is_set():
                connection.trickle()
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), BYTE_INTERVAL * random.uniform(0.9, 1.1))
        except OSError:
            pass
        finally:
            connection.close()
        await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))


async def _all(port: int, kind: Attack, number: int) -> None:
    opening, opened = asyncio.Semaphore(OPENING), asyncio.Queue[Any]()
    clients = [asyncio.create_task(_one(port, kind, opening, opened)) for _ in range(number)]
    for _ in range(number):
        await opened.get()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    del clients
    os._exit(0)  # faster than closing thousands of connections


def main(port: int, kind: str, number: int) -> None:
    """Open the connections and hold them until standard input ends."""
    os.nice(NICENESS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_all(port, KINDS[kind], number))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
