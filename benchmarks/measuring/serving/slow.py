"""Slow-loris clients: connections that send the head of a request byte by byte and never end it."""

import asyncio
import threading
from contextlib import suppress

from retrieval.errors import DiptychError

HEAD = b"POST /predict HTTP/1.1\r\nHost: slow\r\nX-Slow: "
BYTE_INTERVAL = 2.0  # seconds between two bytes of a connection


class SlowClients:
    """Context manager that holds `number` slow connections in a thread; a closed connection is opened again."""

    def __init__(self, port: int, number: int) -> None:
        self._port, self._number = port, number
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)
        self._ready = threading.Event()
        self._errors: list[Exception] = []
        self.open = 0
        self.cut_off = 0

    def __enter__(self) -> "SlowClients":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        if self._errors:
            raise DiptychError(f"{len(self._errors)} slow clients failed, the first with {self._errors[0]!r}")

    async def _all(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        clients = [
            asyncio.create_task(self._one(BYTE_INTERVAL * index / self._number)) for index in range(self._number)
        ]
        await self._end.wait()
        for client in clients:
            client.cancel()
        results = await asyncio.gather(*clients, return_exceptions=True)
        self._errors += [result for result in results if isinstance(result, Exception)]  # not cancellations

    async def _one(self, offset: float) -> None:
        await asyncio.sleep(offset)  # spreads the times of sending
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.open += 1
                try:
                    await self._trickle(reader, writer)
                finally:
                    self.open -= 1
                    writer.close()
                self.cut_off += 1
            await asyncio.sleep(0.1)

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send bytes until the service closes the connection."""
        ended = asyncio.ensure_future(reader.read())
        try:
            writer.write(HEAD)
            while not (await asyncio.wait([ended], timeout=BYTE_INTERVAL))[0]:
                writer.write(b"a")
                await writer.drain()
        finally:
            ended.cancel()
