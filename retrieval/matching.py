"""Offline matching: a file of queries → a file of matches, a row a hit.

Queries are answered a part at a time, so memory does not grow with their number. Each part is a file of its own until
all are there; a run that was interrupted finds the parts it has written and goes on behind them.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from retrieval.errors import BadInput
from retrieval.filters import Filter
from retrieval.queries import Queries, format_of
from retrieval.retriever import NO_ROW, Ranking, Retriever

QUERIES_A_PART = 8_192
PARTS_AT_ONCE = 2  # while one is scored and written, which takes one core, the other is looked for with all of them
MATCHES = pa.schema(
    [
        ("row", pa.int64()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("dual_encoder", pa.float32()),
        ("classifier", pa.float32()),
    ]
)

Progress = Callable[[int, int], object]  # called with (queries answered, queries in all)


@dataclass(frozen=True)
class Wanted:
    """How the queries are to be answered; see `Retriever.search`."""

    k: int = 10
    weight: float | None = None
    filter: Filter | None = None
    min_score: float | None = None


@dataclass(frozen=True)
class Matched:
    """What a run found: queries of the file, those of them without text, which have no matches, and matches in all."""

    queries: int
    blank: int
    matches: int


def match(
    retriever: Retriever, source: Path, target: Path, column: str | None, wanted: Wanted, progress: Progress
) -> Matched:
    """Answer every query of `source` and write `target`, Parquet, CSV or JSON Lines by their names.

    `column` holds the queries; None takes `query`, or `text`. Goes on with what an interrupted run of the same
    question left beside `target`; another one's parts are begun anew. Raises BadInput.
    """
    queries = Queries(source, column)
    format_of(target)
    if target.exists():
        raise BadInput(f"{target} is there already. Remove it, or give another --output.")
    parts = Parts(target, _question(retriever, queries, wanted))

    def answer(number: int, texts: Sequence[str]) -> None:
        parts.write(number, _matches(retriever, texts, number * QUERIES_A_PART, wanted))

    pool = ThreadPoolExecutor(PARTS_AT_ONCE)
    try:
        written: deque[Future[None] | None] = deque()  # in the order of the queries; None by an earlier run
        for number, texts in enumerate(queries.parts(QUERIES_A_PART)):
            written.append(None if parts.has(number) else pool.submit(answer, number, texts))
            if len(written) > PARTS_AT_ONCE:
                _await(written)
                progress((number + 1 - PARTS_AT_ONCE) * QUERIES_A_PART, queries.count)
        while written:
            _await(written)
            progress(max(0, queries.count - len(written) * QUERIES_A_PART), queries.count)
    finally:
        pool.shutdown(cancel_futures=True)
    return Matched(queries.count, queries.blank, parts.join())


def _await(written: deque[Future[None] | None]) -> None:
    """Until the first of them is; raises what it raised."""
    if (first := written.popleft()) is not None:
        first.result()


class Parts:
    """The parts of a run, in a folder beside its target; each is whole or not there."""

    def __init__(self, target: Path, question: dict[str, Any]) -> None:
        self.target, self.folder = target, target.with_name(f".{target.name}.parts")
        asked = self.folder / "question.json"
        if not asked.is_file() or json.loads(asked.read_text(encoding="utf-8")) != question:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            asked.write_text(json.dumps(question), encoding="utf-8")

    def has(self, number: int) -> bool:
        """Whether an earlier run wrote it."""
        return self._path(number).is_file()

    def write(self, number: int, matches: pa.Table) -> None:
        """Write a part aside, then give it its name."""
        aside = self.folder / f"half-{number:08}"
        pq.write_table(matches, aside)
        aside.replace(self._path(number))

    def join(self) -> int:
        """Write the target from all parts, remove them, and say how many matches there are."""
        aside, matches = self.target.with_name(f".{self.target.name}.half"), 0
        with _writer(aside, format_of(self.target)) as write:
            for path in sorted(self.folder.glob("part-*")):
                part = pq.read_table(path)
                write(part)
                matches += part.num_rows
        aside.replace(self.target)
        shutil.rmtree(self.folder)
        return matches

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08}"


class _writer:  # reads as a function where it is used
    """Writes tables one behind the other into one file of a format."""

    def __init__(self, path: Path, format_: str) -> None:
        self._write: Callable[[pa.Table], object]
        self._file: Any
        if format_ == "parquet":
            self._file = pq.ParquetWriter(path, MATCHES)
            self._write = self._file.write_table
        elif format_ == "csv":
            self._file = pyarrow.csv.CSVWriter(path, MATCHES)
            self._write = self._file.write_table
        else:
            self._file = path.open("w", encoding="utf-8")
            self._write = self._write_lines

    def _write_lines(self, table: pa.Table) -> None:
        for record in table.to_pylist():
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def __enter__(self) -> Callable[[pa.Table], object]:
        return self._write

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _matches(retriever: Retriever, texts: Sequence[str], first: int, wanted: Wanted) -> pa.Table:
    """The matches of some queries, of which the first is row `first` of the file."""
    asked = [place for place, text in enumerate(texts) if text.strip()]
    if not asked:
        return MATCHES.empty_table()
    ranking = retriever.search_rows(
        [texts[place] for place in asked],
        wanted.k,
        weight=wanted.weight,
        filter=wanted.filter,
        min_score=wanted.min_score,
    )
    return _table(retriever, ranking, np.array(asked), pa.array(texts, pa.string()), first)


def _table(retriever: Retriever, ranking: Ranking, asked: np.ndarray, texts: pa.Array, first: int) -> pa.Table:
    query_M, rank_M = np.nonzero(ranking.rows_QK != NO_ROW)
    labels = retriever.labels.table.select(["id", "text"]).take(pa.array(ranking.rows_QK[query_M, rank_M]))
    shares = (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK)
    columns = [
        pa.array(first + asked[query_M]),
        texts.take(pa.array(asked[query_M])),
        pa.array(rank_M + 1, pa.int32()),
        pc.cast(labels.column("id"), pa.string()),
        pc.cast(labels.column("text"), pa.string()),
        *(pa.array(share_QK[query_M, rank_M].astype(np.float32)) for share_QK in shares),
    ]
    return pa.table(columns, schema=MATCHES)


def _question(retriever: Retriever, queries: Queries, wanted: Wanted) -> dict[str, Any]:
    """What parts must have been asked to be gone on with."""
    status = queries.path.stat()
    manifest = hashlib.sha256(retriever.manifest.model_dump_json().encode()).hexdigest()
    paused = hashlib.sha256("\0".join(sorted(retriever.paused)).encode()).hexdigest()
    source = [str(queries.path.resolve()), status.st_size, status.st_mtime_ns, queries.column]
    asked: dict[str, Any] = json.loads(json.dumps(asdict(wanted)))
    return {"bundle": manifest, "paused": paused, "source": source, "wanted": asked, "part": QUERIES_A_PART}
