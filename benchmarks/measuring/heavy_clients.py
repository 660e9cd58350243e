"""Clients that ask as much as they may, each at once again: a process beside the one that measures.

    python -m benchmarks.measuring.heavy_clients PORT CLIENTS BODIES SECONDS [--keys PREFIX]

With keys each client has its own, `PREFIX-0`, `PREFIX-1`, …; without, its own loopback address. Prints the number of
answers by status.
"""

import argparse
import selectors
import socket
import time
from collections import Counter
from pathlib import Path
from typing import cast

FIRST_ADDRESS = 10  # 127.0.0.10, which nobody else uses


class HeavyClient:
    """One connection that sends the next body as soon as it has the answer to the last."""

    def __init__(self, port: int, number: int, bodies: list[bytes], keys: str | None) -> None:
        self.socket = socket.socket()
        if keys is None:
            self.socket.bind((f"127.0.0.{FIRST_ADDRESS + number}", 0))
        self.socket.connect(("127.0.0.1", port))
        self._key = f"X-Api-Key: {keys}-{number}\r\n".encode() if keys else b""
        self._bodies, self._next = bodies, number
        self._head, self._status, self._missing = b"", "", -1
        self.send()

    def send(self) -> None:
        """Send the next body."""
        body = self._bodies[self._next % len(self._bodies)]
        self._next += 1
        self._head, self._missing = b"", -1
        head = b"POST /predict HTTP/1.1\r\nHost: test\r\n%bContent-Length: %d\r\n\r\n" % (self._key, len(body))
        self.socket.sendall(head + body)

    def receive(self) -> str | None:
        """Take what has come; return the status when that was the end of an answer."""
        data = self.socket.recv(1 << 20)
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
            if status := client.receive():
                answers[status] += 1
                client.send()
    print(", ".join(f"{count:,} × {status}" for status, count in sorted(answers.items())) or "none")


if __name__ == "__main__":
    main()
