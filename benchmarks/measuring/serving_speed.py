"""Figures 1 to 3: how much the service answers beside others, and how evenly."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.measuring.serving_cores import apart, sharing
from benchmarks.measuring.serving_load import Queries, Saturated, failures, loaded, saturate
from benchmarks.measuring.serving_peers import INFINITY, NAIVE, peer, ready_command
from benchmarks.measuring.serving_record import Bar, Bench, Figure, doubts, no_failures
from benchmarks.peers.environments import python_of
from loadtest.report import Report
from retrieval import open_bundle
from retrieval.errors import DiptychError
from tests.support.service import Service, serving
from training.data.dataset import Dataset

CLIENTS = (64, 16, 1)  # the first saturates
OURS, BY_FASTAPI, BY_HAND, NAIVE_PEER = "diptych serve", "FastAPI reads", "pydantic reads", "encode in the handler"
BATCHES = (1, 8, 16, 32, 64, 128, 256)  # offline
QUIET = {"log_format": "json"}
Opener = Callable[[], AbstractContextManager[int]]
Rounds = dict[str, list[dict[int, Saturated]]]


@contextmanager
def serving_port(store: Path) -> Iterator[int]:
    """The port of a service of `store` at its default settings."""
    with serving(store, **QUIET) as service:
        yield service.port


def beside_ready_bytes(bench: Bench) -> Figure:
    """1: saturated throughput beside a route that does nothing but check the request."""
    answer = bench.folder / "answer.json"
    answer.write_bytes(middle_answer(bench.store, bench.queries))
    log = bench.folder / "ready.log"
    sides: dict[str, Opener] = {
        OURS: lambda: serving_port(bench.store),
        BY_FASTAPI: lambda: peer(ready_command(answer, by_hand=False), log),
        BY_HAND: lambda: peer(ready_command(answer, by_hand=True), log),
    }
    rounds = in_turn(sides, bench, CLIENTS)
    fastest = max((BY_FASTAPI, BY_HAND), key=lambda name: _rate(rounds[name], CLIENTS[0]))
    pairs = zip(rounds[OURS], rounds[fastest], strict=True)
    ratios = [mine[CLIENTS[0]].rate / other[CLIENTS[0]].rate for mine, other in pairs]
    ours, theirs = (_rate(rounds[name], CLIENTS[0]) for name in (OURS, fastest))
    beside = f"{ours:,.0f}/s against {theirs:,.0f}/s ({fastest}); {_spread(ratios)}"
    failed = sum(one.failed for side in rounds.values() for found in side for one in found.values())
    return Figure(
        "Static encoder, keywords: throughput beside a route that returns ready bytes",
        [
            Bar("throughput of the faster route", statistics.median(ratios), 0.45, least=True, beside=beside),
            Bar("requests that failed", failed, 0, beside="all sides together"),
        ],
        [f"Ready answers of {answer.stat().st_size:,} bytes, as the middle one of the service's.", *table(rounds)],
    )


def beside_sentence_transformers(bench: Bench) -> Figure:
    """2: throughput and p99 beside the service most people would write, and throughput beside offline search."""
    assert bench.minilm
    assert bench.model
    store, dataset = bench.minilm[0], Dataset.open(bench.minilm[1])
    queries = Queries(distinct_queries(dataset), bench.folder / "minilm")
    queries.folder.mkdir(exist_ok=True)
    labels = bench.folder / "labels.jsonl"
    pairs = zip(dataset.label_table["id"].to_pylist(), dataset.label_texts, strict=True)
    labels.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in pairs), encoding="utf-8")
    services = {NAIVE: "benchmarks.peers.naive_service", INFINITY: "benchmarks.peers.infinity_service"}
    (theirs, rate, slow), (gathered, _, beside) = (
        _beside_peer(
            [str(python_of(environment, bench.environments)), "-m", module, bench.model, str(labels)], bench, queries
        )
        for environment, module in services.items()
    )
    with serving_port(store) as port:
        ours = _saturated(port, queries, bench)
        fast = loaded(port, queries, rate, bench.lengths.calm)
    offline, batch = best_offline(store, queries.texts, bench.lengths.saturation)
    p99s = f"{fast.latency.p99_ms:.1f} ms against {slow.latency.p99_ms:.1f} ms at {rate:,.0f}/s"
    return Figure(
        "MiniLM: beside sentence-transformers in the handler, and beside `Retriever.search`",
        [
            Bar("throughput of theirs", ours.rate / theirs.rate, 10, least=True, beside=_rates(ours, theirs)),
            Bar("p99 of theirs at equal rate", fast.latency.p99_ms / slow.latency.p99_ms, 0.2, beside=p99s),
            Bar(
                "throughput of `Retriever.search`", ours.rate / offline, 0.85, least=True,
                beside=f"{ours.rate:,.0f}/s against {offline:,.0f}/s in batches of {batch}",
            ),
            no_failures(fast, failures(fast)),
        ],
        [
            f"infinity-emb, which gathers requests into batches, with hnswlib: {gathered.rate:,.0f}/s, of which "
            f"ours is {ours.rate / gathered.rate:.1f} times; its p99 at half of that {beside.latency.p99_ms:.1f} ms.",
            *doubts(fast, "our run"), *doubts(slow, "their run"), *doubts(beside, "infinity's run"),
        ],
    )  # fmt: skip


def _beside_peer(command: Sequence[str], bench: Bench, queries: Queries) -> tuple[Saturated, float, Report]:
    """What a peer answers at most, half of that, and a run at half."""
    with peer(command, bench.folder / f"{command[2].rpartition('.')[2]}.log") as port:
        most = _saturated(port, queries, bench)
        rate = max(1.0, most.rate / 2)
        return most, rate, loaded(port, queries, rate, bench.lengths.calm)


def evenly_at_half(bench: Bench) -> Figure:
    """3: p99 beside p50 at half of saturation, and the longest time the service itself names."""
    with serving(bench.store, **QUIET) as service:
        together, most_together = _half(service, bench)
    with apart(serving(bench.store, **QUIET)) as service:
        report, most = _half(service, bench)
    found, total = report.latency, report.stages["total"]
    return Figure(
        "At half of saturation",
        [
            Bar("p99 in p50s", found.p99_ms / found.p50_ms, 3, beside=_spread_of(report, most)),
            Bar("ms, the longest `Server-Timing` total", total.max_ms, 50, beside=f"its p99 {total.p99_ms:.2f} ms"),
            no_failures(report, failures(report)),
        ],
        [
            f"{sharing()} With all cores free to both: p99 in p50s "
            f"{together.latency.p99_ms / together.latency.p50_ms:.1f} ({_spread_of(together, most_together)}), the "
            f"longest total {together.stages['total'].max_ms:.0f} ms.",
            f"Server-Timing, p50 and p99 in ms: {stages(report)}.",
            *doubts(report, "the run on separate cores"),
            *doubts(together, "the run on shared cores"),
        ],
    )


def _half(service: Service, bench: Bench) -> tuple[Report, float]:
    """A run at half of what the service answers, and what it answers."""
    most = saturate(service.port, bench.queries, bench.lengths.saturation, CLIENTS[0]).rate
    return loaded(service.port, bench.queries, most / 2, bench.lengths.calm), most


def _spread_of(report: Report, most: float) -> str:
    found = report.latency
    return f"{found.p99_ms:.2f} ms and {found.p50_ms:.2f} ms at {report.rate:,.0f}/s of {most:,.0f}/s"


def stages(report: Report) -> str:
    """Where an answer's time goes, as the service says; an engine's stages are those of its whole batch."""
    return ", ".join(f"{name} {one.p50_ms:.2f} and {one.p99_ms:.2f}" for name, one in report.stages.items())


def in_turn(sides: dict[str, Opener], bench: Bench, clients: Sequence[int]) -> Rounds:
    """Every side once, then every side again, …, each a process of its own and warmed first; by number of clients."""
    rounds: Rounds = {name: [] for name in sides}
    for number in range(bench.lengths.rounds):
        for name, opened in sides.items():
            with ExitStack() as stack:
                port = stack.enter_context(opened())
                saturate(port, bench.queries, bench.lengths.saturation / 5, clients[0])
                taken = {count: saturate(port, bench.queries, bench.lengths.saturation, count) for count in clients}
            rounds[name].append(taken)
            bench.tell(f"round {number + 1} of {bench.lengths.rounds}: {taken[clients[0]].rate:,.0f}/s, {name}")
    return rounds


def table(rounds: Rounds) -> list[str]:
    """A row for each side: medians over its rounds."""
    heads = [f"{count} client{'s' if count > 1 else ''}: a second, p50, p99 ms" for count in CLIENTS]
    lines = ["", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, found in rounds.items():
        cells = []
        for count in CLIENTS:
            p50, p99 = (statistics.median(getattr(one[count], of) for one in found) for of in ("p50_ms", "p99_ms"))
            cells.append(f"{_rate(found, count):,.0f}, {p50:.2f}, {p99:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def middle_answer(store: Path, queries: Queries) -> bytes:
    """The answer of middle length to the first hundred queries."""
    with serving(store, **QUIET) as service:
        client = service.client()
        replies = [client.post("/predict", body) for body in queries.bodies[:100]]
        client.close()
    if wrong := [reply for reply in replies if reply.status != 200]:
        raise DiptychError(f"the service answered a query with {wrong[0].status}: {wrong[0].body.decode()}")
    return sorted((reply.body for reply in replies), key=len)[len(replies) // 2]


def distinct_queries(dataset: Dataset) -> list[str]:
    """Test queries first, then those of training; each text once."""
    return list(dict.fromkeys([*dataset.split("test").texts, *dataset.split("train").texts]))


def best_offline(store: Path, texts: Sequence[str], seconds: float) -> tuple[float, int]:
    """Queries a second of `Retriever.search` with nobody else there, at its best batch size, and that size."""
    rates = {}
    with open_bundle(store) as retriever:
        retriever.search(texts[: BATCHES[-1]], k=10)
        for batch in BATCHES:
            done, began = 0, time.perf_counter()
            while (spent := time.perf_counter() - began) < seconds / 2:
                start = done % max(1, len(texts) - batch)
                retriever.search(texts[start : start + batch], k=10)
                done += batch
            rates[batch] = done / spent
    best = max(rates, key=lambda batch: rates[batch])
    return rates[best], best


def _saturated(port: int, queries: Queries, bench: Bench) -> Saturated:
    saturate(port, queries, bench.lengths.saturation / 5, CLIENTS[0])
    return saturate(port, queries, bench.lengths.saturation, CLIENTS[0])


def _rate(found: Sequence[dict[int, Saturated]], clients: int) -> float:
    return statistics.median(one[clients].rate for one in found)


def _rates(ours: Saturated, theirs: Saturated) -> str:
    return f"{ours.rate:,.0f}/s against {theirs.rate:,.0f}/s, {CLIENTS[0]} clients"


def _spread(ratios: Sequence[float]) -> str:
    return f"rounds {', '.join(f'{one:.2f}' for one in ratios)}"
