"""Figure 9: schemathesis against the service's own description, and bodies that nobody should send."""

import json
import random
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.measuring.serving_peers import SCHEMATHESIS
from benchmarks.measuring.serving_record import Bar, Bench, Figure
from benchmarks.measuring.serving_speed import QUIET
from benchmarks.peers.environments import python_of
from tests.support.service import ADMIN_KEY, Client, Service, serving

THREADS = 4
DRAWN = 0.1  # of the bodies are hypothesis' own; the rest are good requests, damaged
MOST_BYTES = 20_000  # of a damaged body
TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", b"99999999999999999999", b'""', b"[]", b"{}", b"[[[[[[[[", b'"\\ud800"', b"\x00",
    b"\xff\xfe", b"\xed\xa0\x80", b'"queries":', b'"k":', b'"filter":{"__proto__":[1]}', b'"weight":', b",", b"true",
]  # fmt: skip
# Its own lists have every 5xx, and neither 413, which is how a body with too many items is refused here, nor what no
# schema can say: 504 for an X-Deadline-Ms too short for any answer, 422 for a filter by what the bundle's labels lack.
CONFIG = """[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 408, 409, 422, 429, 504]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 504]
"""
FINDING = re.compile(r"^\s*❌ (ST\d+ .+: \d+)$", re.MULTILINE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
LIKE_A_REQUEST = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("queries", "k", "weight", "filter", "min_score", "more"), JSON)
)
DRAWS = st.binary(max_size=200) | (JSON | LIKE_A_REQUEST).map(lambda value: json.dumps(value).encode())


class Asker:
    """Sends bodies on one connection and counts the answers; `broken` are requests that got none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._client: Client | None = None
        self.statuses: Counter[int] = Counter()
        self.broken = 0

    def ask(self, body: bytes) -> None:
        """Send one body. The service may close the connection after its answer, and the next one opens another."""
        try:
            self._client = self._client or self._service.client()
            reply = self._client.post("/predict", body)
        except (OSError, ValueError, IndexError):
            self.broken += 1
            self._client = None
            return
        self.statuses[reply.status] += 1
        if reply.headers.get("connection") == "close":
            self._client = None


def hostile(bench: Bench) -> Figure:
    """9: every operation by schemathesis, then so many hostile bodies, then a good request."""
    own = bench.folder / "hostile-store"  # it activates and pauses what it likes
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(bench.store, own)
    with serving(own, **QUIET) as service:
        code, said = schemathesis(service, bench)
    shutil.rmtree(own)
    with serving(bench.store, **QUIET) as service:
        askers = [Asker(service) for _ in range(THREADS)]
        began = time.monotonic()
        drawn(askers[0], round(DRAWN * bench.lengths.hostile))
        mutated(askers, bench, began + bench.lengths.fuzzing)
        good = service.ask("POST", "/predict", bench.queries.bodies[0]).status
    statuses = sum((asker.statuses for asker in askers), Counter[int]())
    sent, broken = statuses.total(), sum(asker.broken for asker in askers)
    counted = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
    return Figure(
        "schemathesis, and hostile bodies",
        [
            Bar("exit code of schemathesis, all checks", code, 0, beside=said),
            Bar("hostile bodies sent", sent + broken, bench.lengths.hostile, least=True, beside=counted),
            Bar("answered with 5xx", sum(count for status, count in statuses.items() if status >= 500), 0),
            Bar("not answered", broken, 0),
            Bar("the next good request", good, 200),
        ],
    )


def schemathesis(service: Service, bench: Bench) -> tuple[int, str]:
    """Its exit code and what it found; all that it printed stays in the folder."""
    program = python_of(SCHEMATHESIS, bench.environments).with_name("schemathesis")
    log = (bench.folder / "schemathesis.log").resolve()
    (bench.folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")  # it looks where it is started
    command = [str(program), "--no-color", "run", f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all"]
    command += ["--max-examples", str(bench.lengths.examples), "--seed", "1", "--continue-on-failure"]
    command += ["--header", f"X-Admin-Key: {ADMIN_KEY}"]
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=bench.lengths.fuzzing, check=False,
                cwd=bench.folder,
            ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"it did not end within {bench.lengths.fuzzing:,.0f} s"
    printed = log.read_text("utf-8", "replace")
    lines = [line.strip(" =") for line in printed.splitlines() if line.strip(" =")] or ["it printed nothing"]
    return code, "; ".join([*FINDING.findall(printed), lines[-1]])


def drawn(asker: Asker, number: int) -> None:
    """Bodies that hypothesis draws, always the same ones."""

    checks = list(HealthCheck)

    @settings(max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=checks)
    @given(DRAWS)
    def send(body: bytes) -> None:
        asker.ask(body)

    send()


def mutated(askers: Sequence[Asker], bench: Bench, until: float) -> None:
    """Damaged good requests from several connections at once, as many as are missing or until the time is over."""
    missing = bench.lengths.hostile - sum(asker.statuses.total() + asker.broken for asker in askers)

    def go(place: int) -> None:
        bodies = damaged(bench.queries.bodies, place)
        for _ in range(-(-missing // len(askers))):
            if time.monotonic() > until:
                break
            askers[place].ask(next(bodies))

    threads = [threading.Thread(target=go, args=[place], daemon=True) for place in range(len(askers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def damaged(bodies: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Good bodies with one to eight damages each, the same for the same seed."""
    drawing = random.Random(seed)
    while True:
        body = drawing.choice(bodies)
        for _ in range(drawing.randint(1, 8)):
            body = _damage(body, drawing)[:MOST_BYTES]
        yield body


def _damage(body: bytes, drawing: random.Random) -> bytes:
    start, end = sorted(drawing.randint(0, len(body)) for _ in range(2))
    kind = drawing.randrange(5)
    if kind == 0:
        return body[:start] + body[end:]
    if kind == 1:
        return body[:start] + body[start:end] * drawing.choice((2, 3, 50)) + body[end:]
    if kind == 2:
        return body[:start] + drawing.choice(TOKENS) + body[start:]
    if kind == 3:
        return body[:start] + drawing.choice(TOKENS) + body[end:]
    return body[:start] + drawing.randbytes(drawing.randint(1, 4)) + body[start:]
