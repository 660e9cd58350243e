"""Figure 11: CPU time and memory of the front for the most expensive bodies within the size limit."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measuring.serving.record import Figure, Limit, ServingSetup
from benchmarks.measuring.serving.speed import QUIET
from tests.support.service import ADMIN_KEY, Service, serving

SIZE = 1 << 20  # the service's default limit
ROUTES = ("/predict", "/admin/compare", "/admin/activate", "/admin/paused")
REPEATS = 3  # requests per body; the cheapest counts, since other work on the machine adds time
PIECES = [
    b"[]", b"{}", b"[[", b"{", b"}", b"[", b"]", b",", b":", b'"a"', b'""', b"1", b"-0.0", b"1e308", b"null", b"true",
    b'"\\""', b'"\\\\"', b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"a":', b'"k":1,', b'"queries":["a"],',
    b'"filter":{"a":[1]},',
    b"\xff", b"\x00", b" ", "é".encode(), b'"', b"\\", b"9" * 50, b'"add":["a"],', b'"bundle":"a",',
]  # fmt: skip
BEGINNINGS = [
    b"", b"[", b"{", b'{"queries":[', b'{"queries":["', b'{"queries":["a"],"filter":{', b'{"queries":["a"],"k":',
    b'{"queries":["a"],"filter":{"a":[', b'{"add":[', b'{"remove":["', b'{"bundle":"', b'{"bundle":[', b'{"weight":',
]  # fmt: skip


def filled(start: bytes, unit: bytes, end: bytes = b"") -> bytes:
    """Return a body of SIZE bytes at most: `start`, as many units as fit, `end`."""
    return start + unit * ((SIZE - len(start) - len(end)) // len(unit)) + end


def known_bodies() -> dict[str, bytes]:
    """Return bodies of every kind that is known to be expensive, and the largest valid ones."""
    lists = b",".join([b"[]"] * 340)
    values = [f'"{value}"' for value in range(1000)]
    text = json.dumps("é" * 330).encode()
    return {
        "filter, 1,000 names with 340 empty lists": b'{"queries":["a"],"filter":{%b}}'
        % b",".join(b'"%d":[%b]' % (name, lists) for name in range(1000)),
        "100,000 unknown fields": b"{%b}" % b",".join(b'"%x":1' % name for name in range(100_000)),
        "one field again and again": filled(b"{", b'"k":1,', b'"k":1}'),
        "lists": filled(b'{"queries":[', b"[],", b"1]}"),
        "numbers": filled(b'{"queries":[', b"1,", b"1]}"),
        "texts": filled(b'{"queries":[', b'"a",', b'"a"]}'),
        "ids": filled(b'{"add":[', b'"a",', b'"a"]}'),
        "depth": b"[" * SIZE,
        "a long number": filled(b'{"queries":["a"],"k":', b"9", b"}"),
        "a long fraction": filled(b'{"queries":["a"],"weight":0.', b"9", b"}"),
        "a long text": filled(b'{"queries":["', b"a", b'"]}'),
        "a long name": filled(b'{"queries":["a"],"', b"a", b'":1}'),
        "escaped quotes": filled(b'{"queries":["', b'\\"', b'"]}'),
        "escaped backslashes": filled(b'{"queries":["', b"\\\\", b'"]}'),
        "both": filled(b'{"queries":["', b'\\\\\\"', b'"]}'),
        "escaped characters": filled(b'{"queries":["', b"\\ud83d\\ude00", b'"]}'),
        "no UTF-8": filled(b'{"queries":["', b"\xff", b'"]}'),
        "zeros": b"\x00" * SIZE,
        "blanks": filled(b'{"queries":["a"]', b" ", b"}"),
        "256 long texts": b'{"queries":[%b]}' % b",".join([text] * 256),
        "a filter of 16,000 values": b'{"queries":["a"],"filter":{%b}}'
        % b",".join(b'"%d":[%b]' % (name, ",".join(values).encode()) for name in range(16)),
        "9,000 ids": json.dumps({"add": [f"absent-{number}" for number in range(9000)]}).encode(),
    }


def drawn_bodies(number: int) -> Iterator[tuple[str, bytes]]:
    """Yield bodies of a few random pieces repeated up to the limit; the seed is fixed."""
    drawing = random.Random(11)
    for index in range(number):
        unit = b"".join(drawing.choices(PIECES, k=drawing.randint(1, 6)))
        start, end = drawing.choice(BEGINNINGS), drawing.choice([b"", b'"]}', b"1]}", b'"a":1}}', b"}"])
        yield f"drawn {index}: {start!r} {unit!r} …", filled(start, unit, end)


def body_cost(setup: ServingSetup) -> Figure:
    """11: bodies of 1 MiB that are expensive to parse, on every route that reads a body."""
    statuses: Counter[int] = Counter()
    seconds, size = (0.0, ""), (0.0, "")
    bodies = [*known_bodies().items(), *drawn_bodies(setup.lengths.costly_bodies)]
    with serving(setup.store, compare_seconds=0, **QUIET) as service:
        service.ask("POST", "/predict", setup.queries.bodies[0])
        for name, body in bodies:
            for route in ROUTES:
                costs = [measure(service, route, body) for _ in range(REPEATS)]
                statuses.update(status for status, _, _ in costs)
                seconds = max(seconds, (min(one for _, one, _ in costs), f"{name}, {route}"))
                size = max(size, (max(one for _, _, one in costs) / 1e6, f"{name}, {route}"))
        good = service.ask("POST", "/predict", setup.queries.bodies[0]).status
    failed = sum(count for status, count in statuses.items() if status >= 500)
    counted = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
    return Figure(
        "Cost of a hostile body of 1 MiB",
        [
            Limit("ms of CPU time, maximum", seconds[0] * 1e3, 20, detail=seconds[1]),
            Limit("MB of memory, maximum", size[0], 20, detail=size[1]),
            Limit("answered with 5xx", failed, 0, detail=counted),
            Limit("the next good request", good, 200),
        ],
        [f"{len(bodies):,} bodies, each {REPEATS} times on {', '.join(ROUTES)}; the cheapest of the {REPEATS} counts."],
    )  # fmt: skip


def measure(service: Service, route: str, body: bytes) -> tuple[int, float, float]:
    """Send one request; return its status, the front's CPU seconds, and the growth of its peak memory in bytes."""
    pid = service.process.pid
    client = service.client()
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM, the peak of resident memory
    before, began = memory(pid, "VmRSS"), processor_seconds(pid)
    reply = client.post(route, body, X_Admin_Key=ADMIN_KEY)
    ended = processor_seconds(pid)
    client.close()
    return reply.status, ended - began, memory(pid, "VmHWM") - before


def processor_seconds(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, with nanosecond resolution."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


def memory(pid: int, name: str) -> int:
    """Return a value of /proc/PID/status in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
