"""Figures 1 to 3: throughput compared with other services, and latency at half of saturation."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.measuring.serving.cores import core_allocation, on_separate_cores
from benchmarks.measuring.serving.load import QuerySet, Saturation, failures, run_load, saturate
from benchmarks.measuring.serving.peers import INFINITY, NAIVE, peer, ready_command
from benchmarks.measuring.serving.record import Figure, Limit, ServingSetup, invalid_notes, no_failures
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
Rounds = dict[str, list[dict[int, Saturation]]]


@contextmanager
def serving_port(store: Path) -> Iterator[int]:
    """Serve `store` with default settings; yield the port."""
    with serving(store, **QUIET) as service:
        yield service.port


def compare_with_ready_bytes(setup: ServingSetup) -> Figure:
    """1: saturated throughput compared with a route that only checks the request."""
    answer = setup.folder / "answer.json"
    answer.write_bytes(median_answer(setup.store, setup.queries))
    log = setup.folder / "ready.log"
    sides: dict[str, Opener] = {
        OURS: lambda: serving_port(setup.store),
        BY_FASTAPI: lambda: peer(ready_command(answer, by_hand=False), log),
        BY_HAND: lambda: peer(ready_command(answer, by_hand=True), log),
    }
    rounds = alternate(sides, setup, CLIENTS)
    fastest = max((BY_FASTAPI, BY_HAND), key=lambda name: _rate(rounds[name], CLIENTS[0]))
    pairs = zip(rounds[OURS], rounds[fastest], strict=True)
    ratios = [ours[CLIENTS[0]].rate / theirs[CLIENTS[0]].rate for ours, theirs in pairs]
    rate, peer_rate = (_rate(rounds[name], CLIENTS[0]) for name in (OURS, fastest))
    rates = f"{rate:,.0f}/s against {peer_rate:,.0f}/s ({fastest}); {_spread(ratios)}"
    failed = sum(one.failed for side in rounds.values() for by_clients in side for one in by_clients.values())
    return Figure(
        "Static encoder, keywords: throughput compared with a route that returns ready bytes",
        [
            Limit(
                "throughput, divided by that of the faster route",
                statistics.median(ratios),
                0.45,
                at_least=True,
                detail=rates,
            ),
            Limit("requests that failed", failed, 0, detail="of all sides"),
        ],
        [f"Ready answers of {answer.stat().st_size:,} bytes, the median of the service's answers.", *table(rounds)],
    )


def compare_with_sentence_transformers(setup: ServingSetup) -> Figure:
    """2: throughput and p99 compared with sentence-transformers in a handler, and throughput with offline search."""
    assert setup.minilm
    assert setup.model
    store, dataset = setup.minilm[0], Dataset.open(setup.minilm[1])
    queries = QuerySet(distinct_queries(dataset), setup.folder / "minilm")
    queries.folder.mkdir(exist_ok=True)
    labels = setup.folder / "labels.jsonl"
    pairs = zip(dataset.label_table["id"].to_pylist(), dataset.label_texts, strict=True)
    labels.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in pairs), encoding="utf-8")
    services = {NAIVE: "benchmarks.peers.naive_service", INFINITY: "benchmarks.peers.infinity_service"}
    (naive, rate, naive_run), (infinity, _, infinity_run) = (
        _measure_peer(
            [str(python_of(environment, setup.environments)), "-m", module, setup.model, str(labels)], setup, queries
        )
        for environment, module in services.items()
    )
    with serving_port(store) as port:
        ours = _saturated(port, queries, setup)
        our_run = run_load(port, queries, rate, setup.lengths.calm)
    offline, batch = best_offline(store, queries.texts, setup.lengths.saturation)
    p99s = f"{our_run.latency.p99_ms:.1f} ms against {naive_run.latency.p99_ms:.1f} ms at {rate:,.0f}/s"
    return Figure(
        "MiniLM: compared with sentence-transformers in a handler, and with `Retriever.search`",
        [
            Limit("throughput ratio", ours.rate / naive.rate, 10, at_least=True, detail=_rates(ours, naive)),
            Limit("p99 ratio at equal rate", our_run.latency.p99_ms / naive_run.latency.p99_ms, 0.2, detail=p99s),
            Limit(
                "throughput, divided by that of `Retriever.search`", ours.rate / offline, 0.85, at_least=True,
                detail=f"{ours.rate:,.0f}/s against {offline:,.0f}/s in batches of {batch}",
            ),
            no_failures(our_run, failures(our_run)),
        ],
        [
            f"infinity-emb, which collects requests into batches, with hnswlib: {infinity.rate:,.0f}/s; Diptych has "
            f"{ours.rate / infinity.rate:.1f} times that. p99 of infinity at half of its rate: "
            f"{infinity_run.latency.p99_ms:.1f} ms.",
            *invalid_notes(our_run, "our run"), *invalid_notes(naive_run, "the run of sentence-transformers"),
            *invalid_notes(infinity_run, "the run of infinity"),
        ],
    )  # fmt: skip


def _measure_peer(command: Sequence[str], setup: ServingSetup, queries: QuerySet) -> tuple[Saturation, float, Report]:
    """Return a peer's saturation, half of its rate, and the report of a run at that rate."""
    with peer(command, setup.folder / f"{command[2].rpartition('.')[2]}.log") as port:
        saturation = _saturated(port, queries, setup)
        rate = max(1.0, saturation.rate / 2)
        return saturation, rate, run_load(port, queries, rate, setup.lengths.calm)


def latency_at_half(setup: ServingSetup) -> Figure:
    """3: p99 divided by p50 at half of saturation, and the longest `Server-Timing` total."""
    with serving(setup.store, **QUIET) as service:
        shared, shared_rate = _run_at_half(service, setup)
    with on_separate_cores(serving(setup.store, **QUIET)) as service:
        report, rate = _run_at_half(service, setup)
    latency, total = report.latency, report.stages["total"]
    return Figure(
        "At half of saturation",
        [
            Limit("p99, divided by p50", latency.p99_ms / latency.p50_ms, 3, detail=_latencies(report, rate)),
            Limit("ms, the longest `Server-Timing` total", total.max_ms, 50, detail=f"its p99 {total.p99_ms:.2f} ms"),
            no_failures(report, failures(report)),
        ],
        [
            f"{core_allocation()} With all cores shared by both: p99 divided by p50 "
            f"{shared.latency.p99_ms / shared.latency.p50_ms:.1f} ({_latencies(shared, shared_rate)}), longest total "
            f"{shared.stages['total'].max_ms:.0f} ms.",
            f"Server-Timing, p50 and p99 in ms: {stages(report)}.",
            *invalid_notes(report, "the run on separate cores"),
            *invalid_notes(shared, "the run on shared cores"),
        ],
    )


def _run_at_half(service: Service, setup: ServingSetup) -> tuple[Report, float]:
    """Return the report of a run at half of saturation, and the saturated rate."""
    rate = saturate(service.port, setup.queries, setup.lengths.saturation, CLIENTS[0]).rate
    return run_load(service.port, setup.queries, rate / 2, setup.lengths.calm), rate


def _latencies(report: Report, saturated: float) -> str:
    latency = report.latency
    return f"{latency.p99_ms:.2f} ms and {latency.p50_ms:.2f} ms at {report.rate:,.0f}/s of {saturated:,.0f}/s"


def stages(report: Report) -> str:
    """Describe the `Server-Timing` stages of answers; the stages of an engine are those of the complete batch."""
    return ", ".join(f"{name} {one.p50_ms:.2f} and {one.p99_ms:.2f}" for name, one in report.stages.items())


def alternate(sides: dict[str, Opener], setup: ServingSetup, clients: Sequence[int]) -> Rounds:
    """Run all sides in alternation, each in a new process with a warm-up; return results by number of clients."""
    rounds: Rounds = {name: [] for name in sides}
    for number in range(setup.lengths.rounds):
        for name, opener in sides.items():
            with ExitStack() as stack:
                port = stack.enter_context(opener())
                saturate(port, setup.queries, setup.lengths.saturation / 5, clients[0])
                by_clients = {
                    count: saturate(port, setup.queries, setup.lengths.saturation, count) for count in clients
                }
            rounds[name].append(by_clients)
            setup.log(f"round {number + 1} of {setup.lengths.rounds}: {by_clients[clients[0]].rate:,.0f}/s, {name}")
    return rounds


def table(rounds: Rounds) -> list[str]:
    """Return a row per side: medians over its rounds."""
    heads = [f"{count} client{'s' if count > 1 else ''}: per second, p50, p99 ms" for count in CLIENTS]
    lines = ["", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, results in rounds.items():
        cells = []
        for count in CLIENTS:
            p50, p99 = (statistics.median(getattr(one[count], of) for one in results) for of in ("p50_ms", "p99_ms"))
            cells.append(f"{_rate(results, count):,.0f}, {p50:.2f}, {p99:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def median_answer(store: Path, queries: QuerySet) -> bytes:
    """Return the answer of median length to the first hundred queries."""
    with serving(store, **QUIET) as service:
        client = service.client()
        replies = [client.post("/predict", body) for body in queries.bodies[:100]]
        client.close()
    if wrong := [reply for reply in replies if reply.status != 200]:
        raise DiptychError(f"the service answered a query with {wrong[0].status}: {wrong[0].body.decode()}")
    return sorted((reply.body for reply in replies), key=len)[len(replies) // 2]


def distinct_queries(dataset: Dataset) -> list[str]:
    """Return the distinct texts of the test queries, then of the training queries."""
    return list(dict.fromkeys([*dataset.split("test").texts, *dataset.split("train").texts]))


def best_offline(store: Path, texts: Sequence[str], seconds: float) -> tuple[float, int]:
    """Measure queries per second of `Retriever.search`; return the best rate and its batch size."""
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


def _saturated(port: int, queries: QuerySet, setup: ServingSetup) -> Saturation:
    saturate(port, queries, setup.lengths.saturation / 5, CLIENTS[0])
    return saturate(port, queries, setup.lengths.saturation, CLIENTS[0])


def _rate(results: Sequence[dict[int, Saturation]], clients: int) -> float:
    return statistics.median(one[clients].rate for one in results)


def _rates(ours: Saturation, theirs: Saturation) -> str:
    return f"{ours.rate:,.0f}/s against {theirs.rate:,.0f}/s, {CLIENTS[0]} clients"


def _spread(ratios: Sequence[float]) -> str:
    return f"rounds {', '.join(f'{one:.2f}' for one in ratios)}"
