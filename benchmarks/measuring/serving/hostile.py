"""Figure 9: schemathesis with the service's OpenAPI description, and hostile bodies."""

import json
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.measuring.serving.peers import SCHEMATHESIS
from benchmarks.measuring.serving.record import Figure, Limit, ServingSetup
from benchmarks.measuring.serving.speed import QUIET
from benchmarks.peers.environments import python_of
from tests.support.service import ADMIN_KEY, Client, Service, serving

THREADS = 4
DRAWN_SHARE = 0.1  # of the bodies are drawn by hypothesis; the others are damaged valid requests
MAX_BYTES = 20_000  # of a damaged body
TOKENS = [
    b"null", b"-1", b"1e999", b"NaN", b"99999999999999999999", b'""', b"[]", b"{}", b"[[[[[[[[", b'"\\ud800"', b"\x00",
    b"\xff\xfe", b"\xed\xa0\x80", b'"queries":', b'"k":', b'"filter":{"__proto__":[1]}', b'"weight":', b",", b"true",
]  # fmt: skip
# The default lists lack 413 (too many items in a body), 504 (an X-Deadline-Ms that is too short) and 422 (a filter on
# an attribute that the bundle's labels do not have). A schema cannot express the last two.
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
REQUEST_LIKE = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("queries", "k", "weight", "filter", "min_score", "more"), JSON)
)
DRAWS = st.binary(max_size=200) | (JSON | REQUEST_LIKE).map(lambda value: json.dumps(value).encode())


class RandomClient:
    """Sends bodies on one connection and counts the answers; `broken` are requests that got none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._client: Client | None = None
        self.statuses: Counter[int] = Counter()
        self.broken = 0

    def ask(self, body: bytes) -> None:
        """Send one body. The service may close the connection after its answer; the next request opens another."""
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


def hostile(setup: ServingSetup) -> Figure:
    """9: every operation by schemathesis, then hostile bodies, then a valid request."""
    copy = setup.folder / "hostile-store"  # schemathesis activates bundles and pauses labels
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(setup.store, copy)
    with serving(copy, **QUIET) as service:
        code, findings = schemathesis(service, setup)
    shutil.rmtree(copy)
    with serving(setup.store, **QUIET) as service:
        clients = [RandomClient(service) for _ in range(THREADS)]
        began = time.monotonic()
        send_drawn(clients[0], round(DRAWN_SHARE * setup.lengths.hostile))
        send_damaged(clients, setup, began + setup.lengths.fuzzing)
        good = service.ask("POST", "/predict", setup.queries.bodies[0]).status
    statuses = sum((client.statuses for client in clients), Counter[int]())
    sent, broken = statuses.total(), sum(client.broken for client in clients)
    counted = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
    return Figure(
        "schemathesis, and hostile bodies",
        [
            Limit("exit code of schemathesis, all checks", code, 0, detail=findings),
            Limit("hostile bodies sent", sent + broken, setup.lengths.hostile, at_least=True, detail=counted),
            Limit("answered with 5xx", sum(count for status, count in statuses.items() if status >= 500), 0),
            Limit("not answered", broken, 0),
            Limit("the next good request", good, 200),
        ],
    )


def schemathesis(service: Service, setup: ServingSetup) -> tuple[int, str]:
    """Run schemathesis; return its exit code and findings. Its output stays in the folder."""
    program = python_of(SCHEMATHESIS, setup.environments).with_name("schemathesis")
    log = (setup.folder / "schemathesis.log").resolve()
    (setup.folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")  # read from its working directory
    command = [str(program), "--no-color", "run", f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all"]
    command += ["--max-examples", str(setup.lengths.examples), "--seed", "1", "--continue-on-failure"]
    command += ["--header", f"X-Admin-Key: {ADMIN_KEY}"]
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=setup.lengths.fuzzing, check=False,
                cwd=setup.folder,
            ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"no end within {setup.lengths.fuzzing:,.0f} s"
    output_text = log.read_text("utf-8", "replace")
    lines = [line.strip(" =") for line in output_text.splitlines() if line.strip(" =")] or ["no output"]
    return code, "; ".join([*FINDING.findall(output_text), lines[-1]])


def send_drawn(client: RandomClient, number: int) -> None:
    """Send bodies that hypothesis draws, the same in every run."""

    checks = list(HealthCheck)

    @settings(max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=checks)
    @given(DRAWS)
    def send(body: bytes) -> None:
        client.ask(body)

    send()


def send_damaged(clients: Sequence[RandomClient], setup: ServingSetup, until: float) -> None:
    """Send the remaining bodies, damaged valid requests, from several connections at once, at most until `until`."""
    missing = setup.lengths.hostile - sum(client.statuses.total() + client.broken for client in clients)

    def send(index: int) -> None:
        bodies = damaged(setup.queries.bodies, index)
        for _ in range(-(-missing // len(clients))):
            if time.monotonic() > until:
                break
            clients[index].ask(next(bodies))

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(send, range(len(clients))))  # raises what a client raised


def damaged(bodies: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield valid bodies with one to eight damages each, the same for the same seed."""
    drawing = random.Random(seed)
    while True:
        body = drawing.choice(bodies)
        for _ in range(drawing.randint(1, 8)):
            body = _damage(body, drawing)[:MAX_BYTES]
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
