"""Run heavy clients in a separate process: each sends its next request as soon as the last one is answered.

    python -m benchmarks.measuring.heavy_clients PORT CLIENTS BODIES SECONDS [--keys PREFIX]

BODIES is a file with one JSON body per line. With --keys each client has its own key, `PREFIX-0`, `PREFIX-1`, …;
without, its own loopback address. Prints the number of answers per status, and of connections that the service closed.
"""

import argparse
import selectors
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import cast

FIRST_ADDRESS = 10  # 127.0.0.10; the measuring process uses 127.0.0.1
CLOSED = "closed"  # counted like a status


class HeavyClient:
    """A client with one connection, which is opened again after the service closes it."""

    def __init__(self, port: int, number: int, bodies: list[bytes], keys: str | None) -> None:
        self._port, self._address = port, None if keys else f"127.0.0.{FIRST_ADDRESS + number}"
        self._key = f"X-Api-Key: {keys}-{number}\r\n".encode() if keys else b""
        self._bodies, self._next = bodies, number
        self._head, self._status, self._missing = b"", "", -1
        self.connect()

    def connect(self) -> None:
        """Open the connection and send the next body."""
        self.socket = socket.socket()
        if self._address:
            self.socket.bind((self._address, 0))
        self.socket.connect(("127.0.0.1", self._port))
        self.send()

    def send(self) -> None:
        """Send the next body. A connection that the service has closed is noticed by `receive`."""
        body = self._bodies[self._next % len(self._bodies)]
        self._next += 1
        self._head, self._missing = b"", -1
        head = b"POST /predict HTTP/1.1\r\nHost: test\r\n%bContent-Length: %d\r\n\r\n" % (self._key, len(body))
        with suppress(ConnectionError):
            self.socket.sendall(head + body)

    def receive(self) -> str | None:
        """Read what has arrived; return the status of a complete answer, CLOSED at the connection's end, else None."""
        data = b""
        with suppress(ConnectionError):
            data = self.socket.recv(1 << 20)
        if not data:
            return CLOSED
        if self._missing < 0:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return None
            head, _, data = self._head.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            self._status = lines[0].split()[1].decode()
            self._missing = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        self._missing -= len(data)
        return None if self._missing else self._status


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("clients", type=int)
    parser.add_argument("bodies", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--keys")
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    selector = selectors.DefaultSelector()
    for number in range(options.clients):
        client = HeavyClient(options.port, number, bodies, options.keys)
        selector.register(client.socket, selectors.EVENT_READ, client)
    answers: Counter[str] = Counter()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        for event, _ in selector.select(0.1):
            client = cast(HeavyClient, event.data)
            status = client.receive()
            if status is None:
                continue
            answers[status] += 1
            if status == CLOSED:
                selector.unregister(client.socket)
                client.socket.close()
                client.connect()
                selector.register(client.socket, selectors.EVENT_READ, client)
            else:
                client.send()
    print(", ".join(f"{count:,} × {status}" for status, count in sorted(answers.items())) or "none")


if __name__ == "__main__":
    main()
