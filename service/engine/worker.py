"""Run the engine process: one bundle, one pipe. It tokenizes, encodes, searches and writes each answer's JSON once.

It is a separate process because loading an index holds the GIL for seconds, because a crash in native code then costs
one engine and not the service, and because its memory returns to the system when it ends. The front starts it with
`service.engine.start`; it ends when its pipe is closed.
"""

import faulthandler
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from retrieval import Retriever, open_bundle
from retrieval.bundle.label_size import MAX_LABEL_BYTES, label_bytes
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BadInput, BundleError, DiptychError
from retrieval.results import NO_ROW, Ranking
from retrieval.system.low_priority import at_once, gently
from service.engine.filter_values import facets
from service.engine.gc_tuning import settle
from service.engine.label_cache import LabelCache
from service.engine.options import Orders
from service.engine.protocol import (
    Answers,
    Asked,
    Kind,
    Outcome,
    Stages,
    frame,
    pack_json,
    pack_parts,
    read_frame,
    unpack_batch,
)
from service.engine.worker_threads import SharedPipe, lanes_for, side_by_side
from service.observe import logs

LOG = logging.getLogger("diptych.engine")
BATCH_BYTES = 1 << 27  # of the answers of one batch; further pieces are postponed to another batch
HIT_BYTES = 96  # of the JSON of a hit without its label


class AnswerTooLarge(Exception):
    """The results of one piece exceed the limit of one answer."""


class Engine:
    """Answer batches from one open bundle. Safe to use from several lanes."""

    def __init__(self, retriever: Retriever, max_answer_bytes: int = BATCH_BYTES) -> None:
        self._retriever = retriever
        self._full_scans = 0  # full scans reported so far
        self._counting = Lock()
        self._max_answer_bytes = max_answer_bytes
        self._labels = LabelCache(retriever.labels)
        sizes_L = label_bytes(retriever.labels.table)
        # labels of old bundles may have any size, so their sizes are summed before they are read
        self._sizes_L = sizes_L if len(sizes_L) and sizes_L.max() > MAX_LABEL_BYTES else None

    def warm(self, largest_batch: int) -> None:
        """Run every length bucket and one full batch once, so that the first requests are not slow."""
        lengths = [1 << power for power in range(self._retriever.manifest.model.max_tokens.bit_length())]
        for length in lengths:
            self._retriever.search([" ".join(["a"] * length)])
        self._retriever.search(["warm up"] * largest_batch)

    def pause(self, ids: Sequence[str]) -> list[str]:
        """Leave labels out of later answers; return the ids that the bundle does not have."""
        return self._retriever.pause(ids)

    def answer(self, number: int, asked: Sequence[Asked]) -> Answers:
        """Return the results of every piece as JSON. Pieces with equal options are searched together."""
        started = time.perf_counter()
        bodies: list[tuple[Outcome, bytes]] = [(Outcome.BROKEN, b"")] * len(asked)
        spent = [0.0] * 4 + [0, 0]  # seconds of each stage, tokens, padding
        alike: dict[bytes, list[int]] = {}
        for place, piece in enumerate(asked):
            alike.setdefault(to_json(piece[1:]), []).append(place)
        total = 0  # bytes
        for places in alike.values():
            if total > BATCH_BYTES:
                for place in places:
                    bodies[place] = (Outcome.POSTPONED, b"")
                continue
            for place, body in zip(places, self._together([asked[place] for place in places], spent), strict=True):
                bodies[place] = body
                total += len(body[1])
        *seconds, tokens, padding = spent
        total_seconds = time.perf_counter() - started
        stages = Stages._make([*seconds, total_seconds, int(tokens), int(padding), self._new_full_scans()])
        return Answers(number, stages, bodies)

    def _new_full_scans(self) -> int:
        """Return the number of full scans since the last call."""
        with self._counting:
            before, self._full_scans = self._full_scans, self._retriever.full_scans
            return self._full_scans - before

    def _together(self, asked: Sequence[Asked], spent: list[float]) -> list[tuple[Outcome, bytes]]:
        try:
            return [(Outcome.ANSWERED, body) for body in self._search(asked, spent)]
        except Exception as error:
            if len(asked) > 1:  # so that only the faulty piece fails
                return self._one_by_one(asked, spent)
            if isinstance(error, AnswerTooLarge):
                return [(Outcome.TOO_LARGE, b"")]
            if isinstance(error, BadInput):
                return [(Outcome.REFUSED, str(error).encode())]
            LOG.exception("a search failed")
            return [(Outcome.BROKEN, b"")]

    def _one_by_one(self, asked: Sequence[Asked], spent: list[float]) -> list[tuple[Outcome, bytes]]:
        outcomes: list[tuple[Outcome, bytes]] = []
        total = 0  # bytes
        for piece in asked:
            if total > BATCH_BYTES:
                outcomes.append((Outcome.POSTPONED, b""))
                continue
            outcomes += self._together([piece], spent)
            total += len(outcomes[-1][1])
        return outcomes

    def _search(self, asked: Sequence[Asked], spent: list[float]) -> list[bytes]:
        queries = [query for piece in asked for query in piece.queries]
        one = asked[0]
        ranking = self._retriever.search_rows(
            queries, one.k, weight=one.weight, filter=one.filter, min_score=one.min_score
        )
        searched = time.perf_counter()
        results = iter(self._write(queries, ranking))
        bodies = [",".join([next(results) for _ in piece.queries]).encode() for piece in asked]
        cost = ranking.timings
        seconds = (cost.tokenize, cost.encode, cost.search, time.perf_counter() - searched)
        for place, more in enumerate((*seconds, cost.tokens, cost.padding)):
            spent[place] += more
        return bodies

    def _write(self, queries: Sequence[str], ranking: Ranking) -> list[str]:
        rows_QK = [rows_K[rows_K != NO_ROW].tolist() for rows_K in ranking.rows_QK]
        if (
            self._sizes_L is not None
            and sum(int(self._sizes_L[rows_K].sum()) for rows_K in rows_QK) > self._max_answer_bytes
        ):
            raise AnswerTooLarge
        written = self._labels.get({row for rows_K in rows_QK for row in rows_K})
        size = sum(len(written[row]) + HIT_BYTES for rows_K in rows_QK for row in rows_K)
        if size > self._max_answer_bytes:
            raise AnswerTooLarge
        shares = zip(*map(_numbers, (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK)), strict=True)
        results = []
        for query, rows_K, shares_K in zip(queries, rows_QK, shares, strict=True):
            hits = [
                f'{{{written[row]},"score":{score},"dual_encoder":{dual},"classifier":{classifier}}}'
                for row, score, dual, classifier in zip(rows_K, *shares_K)  # noqa: B905  # rows may be fewer
            ]
            results.append(f'{{"query":{to_json(query).decode()},"hits":[{",".join(hits)}]}}')
        return results


def _numbers(values_QK: NDArray[np.float64]) -> list[list[str]]:
    """Return numbers as JSON texts. Writing them together is six times as fast as one by one."""
    return [to_json(values_K).decode()[1:-1].split(",") for values_K in values_QK.tolist()]


def open_engine(folder: Path, orders: Orders) -> tuple[Engine, int, bytes]:
    """Verify, load, warm and check a bundle; return its engine, number of lanes and READY frame.

    Raises BundleError, and BadInput for a provider that is not available.
    """
    started, run = time.perf_counter(), gently if orders.behind else at_once
    trusted = trusted_keys(orders.trusted_keys)
    retriever = open_bundle(
        folder, threads=orders.threads, search_threads=orders.search_threads, provider=orders.provider,
        trusted=trusted, low_priority=orders.behind, paused=(),
    )  # fmt: skip
    model = retriever.manifest.model
    engine = Engine(retriever, orders.max_answer_bytes)
    run(lambda: engine.warm(orders.largest_batch))
    golden = run(retriever.check_golden)
    if not golden.passed:
        raise BundleError(
            f"{folder.name} does not give its golden answers here: overlap@10 is {golden.overlap_at_10:.3f} and a "
            f"score is off by {golden.score_deviation:.2g}. Export it on this kind of machine."
        )
    shown_attributes = run(lambda: facets(retriever.labels.table))
    seconds = time.perf_counter() - started
    # On a CPU the encoder itself groups texts of similar length, and the padding of a static encoder costs nothing.
    padded = model.encoder == "transformer" and orders.provider != "cpu"
    lanes = orders.lanes or lanes_for(model.encoder, orders.provider, orders.threads)
    of_texts = (model.bytes_per_token, model.max_tokens, padded)
    about = (retriever.manifest.classifier_weight, shown_attributes)
    opened = (len(retriever.labels), retriever.dim, *of_texts, lanes, seconds, *about)
    return engine, lanes, pack_json(Kind.READY, opened)


def serve(engine: Engine, pipe: SharedPipe) -> None:
    """Answer batches in one lane until the front closes the pipe."""
    while True:
        with pipe.turn:
            received = read_frame(pipe)
            if received is None:
                return
            kind, payload = received
            if kind is Kind.PAUSED:  # under the read lock: every batch read after it, by any lane, obeys it
                pipe.send(pack_json(Kind.PAUSED, engine.pause(from_json(payload))))
                continue
        if kind is not Kind.BATCH:
            raise ValueError(f"the front sent a frame of kind {kind.name}")
        for part in pack_parts(engine.answer(*unpack_batch(payload))):
            pipe.send(part)


def main(descriptor: int, folder: str, orders: Orders) -> int:
    """Open the bundle, report READY or FAILED, and answer until the front closes the pipe. Return the exit code."""
    logs.configure(cast(logs.Form, os.environ.get(logs.FORMAT, "auto")))
    faulthandler.enable()
    # A signal may reach the whole group, but the front needs answers while it drains.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    pipe = socket.socket(fileno=descriptor)
    try:
        engine, lanes, ready = open_engine(Path(folder), orders)
    except DiptychError as error:
        pipe.sendall(frame(Kind.FAILED, str(error).encode()))
        return 1
    except Exception as error:
        LOG.exception("%s could not be opened", folder)
        pipe.sendall(frame(Kind.FAILED, f"{Path(folder).name} cannot be opened ({type(error).__name__}).".encode()))
        return 1
    settle()
    try:
        pipe.sendall(ready)
        shared = SharedPipe(pipe, lanes)
        side_by_side(lanes, lambda: serve(engine, shared), shared.hang_up)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the front has ended
    return 0
