"""Measure the cost of messages between front and engine: MessagePack structs against JSON and packed structs.

    python -m benchmarks.ipc_messages [--rounds 31]

Both sides are measured in alternation in one process; the figures are medians. JSON and packed structs are the encoding
that the service used before (docs/decisions/0074). The last row compares a hit in the label cache, a dictionary, with
one in cachetools.LRUCache.
"""

import argparse
import random
import struct
import sys
import time
from collections.abc import Callable
from statistics import median
from threading import Lock
from typing import Any, NamedTuple

from cachetools import LRUCache
from pydantic_core import from_json, to_json

from service.engine.protocol import (
    HEAD,
    BatchAnswers,
    FrameKind,
    Outcome,
    Query,
    QueryAnswer,
    Stages,
    decode_answers,
    decode_batch,
    encode_answers,
    encode_batch,
    encode_frame,
)

Side = Callable[[], object]
BATCH_SIZES = (1, 16, 64)
ANSWER_BYTES = 1500  # ten hits
CALLS_PER_ROUND = 2000  # of the smallest batch
OLD_HEAD = struct.Struct("<QH5f3I")  # batch number, answers, its Stages
OLD_ANSWER = struct.Struct("<BI")  # outcome, bytes


class OldQuery(NamedTuple):
    """One query of a batch in JSON."""

    texts: list[str]
    k: int
    weight: float | None = None
    filter: dict[str, list[Any]] | None = None
    min_score: float | None = None


def old_encode_batch(number: int, queries: list[OldQuery]) -> bytes:
    """Return a batch as JSON."""
    return encode_frame(FrameKind.BATCH, to_json((number, queries)))


def old_decode_batch(payload: bytes) -> tuple[int, list[OldQuery]]:
    """Return the queries of a batch in JSON."""
    number, queries = from_json(payload)
    return number, [OldQuery(*query) for query in queries]


def old_encode_answers(batch: BatchAnswers) -> bytes:
    """Return answers as packed structs and their bytes."""
    heads = [OLD_ANSWER.pack(outcome, len(body)) for outcome, body in batch.answers]
    head = OLD_HEAD.pack(batch.number, len(heads), *batch.stages)
    return encode_frame(FrameKind.ANSWERS, b"".join([head, *heads, *(body for _, body in batch.answers)]))


def old_decode_answers(payload: bytes) -> BatchAnswers:
    """Return the answers of packed structs."""
    number, count, *stages = OLD_HEAD.unpack_from(payload)
    start = OLD_HEAD.size + count * OLD_ANSWER.size
    answers = []
    for outcome, size in OLD_ANSWER.iter_unpack(payload[OLD_HEAD.size : start]):
        answers.append(QueryAnswer(Outcome(outcome), payload[start : start + size]))
        start += size
    return BatchAnswers(number, Stages(*stages), answers)


def medians(sides: tuple[Side, Side], calls: int, rounds: int) -> tuple[float, float]:
    """Return the median microseconds of one call of each side, measured in alternation."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, measured in zip(sides, seconds, strict=True):
            begin = time.process_time()  # other processes do not count
            for _ in range(calls):
                side()
            measured.append((time.process_time() - begin) / calls * 1e6)
    return median(seconds[0]), median(seconds[1])


def message_rows(size: int) -> dict[str, tuple[Side, Side]]:
    """Return both sides of each operation on a batch of `size` queries."""
    texts = [f"cheap running shoes {number}" for number in range(size)]
    old_queries = [OldQuery([text], 10) for text in texts]
    queries = [Query.create([text], 10) for text in texts]
    stages = Stages(0.001, 0.002, 0.003, 0.004, 0.01, 7 * size, 3, 0)
    batch = BatchAnswers(9, stages, [QueryAnswer(Outcome.ANSWERED, b"x" * ANSWER_BYTES)] * size)
    old_request, request = old_encode_batch(7, old_queries)[HEAD.size :], encode_batch(7, queries)[HEAD.size :]
    old_answer, answer = old_encode_answers(batch)[HEAD.size :], b"".join(encode_answers(batch))[HEAD.size :]
    return {
        "encode request (front)": (lambda: old_encode_batch(7, old_queries), lambda: encode_batch(7, queries)),
        "decode request (engine)": (lambda: old_decode_batch(old_request), lambda: decode_batch(request)),
        "encode answers (engine)": (lambda: old_encode_answers(batch), lambda: list(encode_answers(batch))),
        "decode answers (front)": (lambda: old_decode_answers(old_answer), lambda: decode_answers(answer)),
    }


def cache_hits(entries: int = 50_000, hits: int = 10) -> tuple[Side, Side]:
    """Return both sides of reading `hits` cached labels."""
    cached = dict.fromkeys(range(entries), "x" * 150)
    lru: LRUCache[int, str] = LRUCache(1 << 30, getsizeof=sys.getsizeof)
    lru.update(cached)
    rows, lock = random.Random(0).sample(range(entries), hits), Lock()

    def read_lru() -> dict[int, str | None]:
        with lock:  # a read changes the order of the entries
            return {row: lru.get(row) for row in rows}

    def read_dictionary() -> dict[int, str]:
        missing = [row for row in rows if row not in cached]
        return cached if not missing else {}

    return read_lru, read_dictionary


def main() -> None:
    options = argparse.ArgumentParser(description="Cost of messages between front and engine.")
    options.add_argument("--rounds", type=int, default=31)
    rounds = options.parse_args().rounds
    print("| operation | queries | before, µs | now, µs |\n|---|---:|---:|---:|")
    for size in BATCH_SIZES:
        for name, sides in message_rows(size).items():
            before, now = medians(sides, max(CALLS_PER_ROUND // size, 1), rounds)
            print(f"| {name} | {size} | {before:.1f} | {now:.1f} |")
    lru, dictionary = medians(cache_hits(), CALLS_PER_ROUND, rounds)
    print(f"| 10 cached labels, LRUCache and dictionary | | {lru:.1f} | {dictionary:.1f} |")


if __name__ == "__main__":
    main()
