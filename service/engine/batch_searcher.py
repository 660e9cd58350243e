"""Answer the queries of a batch from one open bundle, and write each answer's JSON once."""

import logging
import time
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from retrieval import Retriever
from retrieval.bundle.label_size import MAX_LABEL_BYTES, label_bytes
from retrieval.errors import BadInput, IndexUnavailable
from retrieval.results import NO_ROW, Ranking
from service.engine.label_cache import LabelCache
from service.engine.protocol import Batch, BatchAnswers, Outcome, Query, QueryAnswer, Stages

LOG = logging.getLogger("diptych.engine")
MAX_BATCH_BYTES = 1 << 27  # of the answers of one batch; further queries are postponed to another batch
HIT_BYTES = 112  # of the JSON of a hit without its label


class AnswerTooLarge(Exception):
    """The results of one query exceed the limit of one answer."""


class BatchSearcher:
    """Answer batches from one open bundle. Safe to use from several threads."""

    def __init__(self, retriever: Retriever, max_answer_bytes: int = MAX_BATCH_BYTES) -> None:
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

    def answer(self, batch: Batch) -> BatchAnswers:
        """Return the results of every query as JSON. Queries with equal options are searched together."""
        started = time.perf_counter()
        answers = [QueryAnswer(Outcome.BROKEN)] * len(batch.queries)
        spent = [0.0] * 4 + [0, 0]  # seconds of each stage, tokens, padding
        places_by_options: dict[object, list[int]] = {}
        for place, query in enumerate(batch.queries):
            places_by_options.setdefault(query.options, []).append(place)
        total_bytes = 0
        for places in places_by_options.values():
            if total_bytes > MAX_BATCH_BYTES:
                for place in places:
                    answers[place] = QueryAnswer(Outcome.POSTPONED)
                continue
            together = self._answer_together([batch.queries[place] for place in places], spent)
            for place, answer in zip(places, together, strict=True):
                answers[place] = answer
                total_bytes += len(answer.body)
        *seconds, tokens, padding = spent
        total_seconds = time.perf_counter() - started
        stages = Stages._make([*seconds, total_seconds, int(tokens), int(padding), self._new_full_scans()])
        return BatchAnswers(batch.number, stages, answers)

    def _new_full_scans(self) -> int:
        """Return the number of full scans since the last call."""
        with self._counting:
            before, self._full_scans = self._full_scans, self._retriever.full_scans
            return self._full_scans - before

    def _answer_together(self, queries: Sequence[Query], spent: list[float]) -> list[QueryAnswer]:
        """Answer queries with equal options in one search; add the cost to `spent`."""
        try:
            return [QueryAnswer(Outcome.ANSWERED, body) for body in self._search(queries, spent)]
        except IndexUnavailable as error:  # for all of them, so they are not repeated one by one
            return [QueryAnswer(Outcome.UNAVAILABLE, str(error).encode())] * len(queries)
        except Exception as error:
            if len(queries) > 1:  # so that only the faulty query fails
                return self._answer_one_by_one(queries, spent)
            if isinstance(error, AnswerTooLarge):
                return [QueryAnswer(Outcome.TOO_LARGE)]
            if isinstance(error, BadInput):
                return [QueryAnswer(Outcome.REFUSED, str(error).encode())]
            LOG.exception("a search failed")
            return [QueryAnswer(Outcome.BROKEN)]

    def _answer_one_by_one(self, queries: Sequence[Query], spent: list[float]) -> list[QueryAnswer]:
        answers: list[QueryAnswer] = []
        total_bytes = 0
        for query in queries:
            if total_bytes > MAX_BATCH_BYTES:
                answers.append(QueryAnswer(Outcome.POSTPONED))
                continue
            answers += self._answer_together([query], spent)
            total_bytes += len(answers[-1].body)
        return answers

    def _search(self, queries: Sequence[Query], spent: list[float]) -> list[bytes]:
        """Return the JSON of each query's results. Raises AnswerTooLarge and BadInput."""
        texts = [text for query in queries for text in query.texts]
        options = queries[0]
        ranking = self._retriever.search_rows(
            texts, options.k, weight=options.weight, filter=options.filter, min_score=options.min_score,
            memory_weight=options.memory_weight,
        )  # fmt: skip
        searched = time.perf_counter()
        results = iter(self._serialize(texts, ranking, options.supporting))
        bodies = [",".join([next(results) for _ in query.texts]).encode() for query in queries]
        cost = ranking.timings
        seconds = (cost.tokenize, cost.encode, cost.search, time.perf_counter() - searched)
        for place, amount in enumerate((*seconds, cost.tokens, cost.padding)):
            spent[place] += amount
        return bodies

    def _serialize(self, texts: Sequence[str], ranking: Ranking, supporting: int) -> list[str]:
        """Return the JSON of each text's hits. Raises AnswerTooLarge."""
        rows_QK = [rows_K[rows_K != NO_ROW].tolist() for rows_K in ranking.rows_QK]
        labels = self._read_labels(rows_QK)
        parts = (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK, ranking.memory_QK)
        scores = zip(*map(_as_json, parts), self._supporting(ranking, supporting), strict=True)
        results = []
        for text, rows_K, scores_K in zip(texts, rows_QK, scores, strict=True):
            hits = [
                f'{{{labels[row]},"score":{score},"dual_encoder":{dual},"classifier":{classifier},"memory":{memory}{why}}}'
                for row, score, dual, classifier, memory, why in zip(rows_K, *scores_K)  # noqa: B905  # rows may be fewer
            ]
            results.append(f'{{"query":{to_json(text).decode()},"hits":[{",".join(hits)}]}}')
        return results

    def _supporting(self, ranking: Ranking, count: int) -> list[list[str]]:
        """Return the JSON of each hit's training queries; empty if none are requested. Raises AnswerTooLarge."""
        if not count:
            return [[""] * ranking.rows_QK.shape[1]] * len(ranking.rows_QK)
        total, written = 0, []
        for by_hit in self._retriever.supporting(ranking, count):
            written.append([f',"supporting":{to_json(queries).decode()}' for queries in by_hit])
            total += sum(map(len, written[-1]))
            if total > self._max_answer_bytes:
                raise AnswerTooLarge
        return written

    def _read_labels(self, rows_QK: list[list[int]]) -> dict[int, str]:
        """Return the JSON of the labels in these rows. Raises AnswerTooLarge."""
        sizes_L, limit = self._sizes_L, self._max_answer_bytes
        if sizes_L is not None and sum(int(sizes_L[rows_K].sum()) for rows_K in rows_QK) > limit:
            raise AnswerTooLarge
        labels = self._labels.get({row for rows_K in rows_QK for row in rows_K})
        if sum(len(labels[row]) + HIT_BYTES for rows_K in rows_QK for row in rows_K) > limit:
            raise AnswerTooLarge
        return labels


def _as_json(values_QK: NDArray[np.float64]) -> list[list[str]]:
    """Return numbers as JSON texts. Writing them together is six times as fast as one by one."""
    return [to_json(values_K).decode()[1:-1].split(",") for values_K in values_QK.tolist()]
