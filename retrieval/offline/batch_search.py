"""Offline matching: from a table of queries to a file of matches, one row per hit.

Queries are answered a part at a time, so memory does not grow with their number. Each part is a file of its own until
all are there; a run that was interrupted finds the parts it has written and goes on behind them.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from retrieval.errors import BadInput
from retrieval.offline.query_files import Part, Queries
from retrieval.retriever import NO_ROW, Ranking, Retriever
from retrieval.search.filters import Filter
from retrieval.tables.account import RowAccount
from retrieval.tables.delimited import Layout
from retrieval.tables.notes import TABLE_NOTES, note_lines

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
FORMULA_STARTS = r"^[=+\-@\t\r\n＝＋－＠]"  # the start of a formula in spreadsheets, full-width forms included
QUERIES_PER_PART = 8_192
CHARACTERS_A_PART = 2**25  # of queries, each as often as it has matches
HITS_AT_ONCE = 65_536  # labels per Arrow array
QUESTION = "question.json"  # next to the parts: the arguments that they answer
PARTS_AT_ONCE = 2  # while one is scored and written, which takes one core, the other is looked for with all of them
MATCHES = pa.schema(
    [
        ("row", pa.int64()),
        ("query", pa.large_string()),
        ("rank", pa.int32()),
        ("id", pa.large_string()),
        ("text", pa.large_string()),
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
class Reading:
    """How to read queries: the column (None: `query`, or `text`), the layout, and whether to skip bad rows."""

    column: str | None = None
    layout: Layout = field(default_factory=Layout)
    skip_bad_rows: bool = False


@dataclass(frozen=True)
class Matched:
    """The result of a run: row counts, number of matches, messages for the first skipped rows, and observations."""

    account: RowAccount
    matches: int
    skipped_first: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()


def match(
    retriever: Retriever, source: Path, target: Path, reading: Reading, wanted: Wanted, progress: Progress, *,
    guard_formulas: bool = False,
) -> Matched:  # fmt: skip
    """Answer every query of `source` and write `target`, Parquet, CSV or JSON Lines by its name.

    Resumes an interrupted run with the same arguments from its parts next to `target`; other parts are removed.
    guard_formulas: in CSV, texts that a spreadsheet would run as formulas get a leading apostrophe.
    Raises BadInput, and InternalError if the row counts do not add up.
    """
    queries = Queries(source, reading.column, layout=reading.layout, skip_bad_rows=reading.skip_bad_rows)
    if guard_formulas and format_of(target) != "csv":
        raise BadInput(f"--guard-formulas is for CSV, and {target} is none. Leave it out.")
    format_of(target)
    if target.exists():
        raise BadInput(f"{target} is there already. Remove it, or give another --output.")
    before = _stamps(queries)
    queries.scan()
    parts = Parts(target, _question(retriever, queries, reading, wanted))
    asked = 0

    def answer(number: int, part: Part) -> None:
        parts.write(number, _matches(retriever, part, wanted))

    pool = ThreadPoolExecutor(PARTS_AT_ONCE)
    try:
        written: deque[tuple[int, Future[None] | None]] = deque()  # in the order of the queries; None by an earlier run
        for number, part in enumerate(queries.parts(QUERIES_PER_PART, max(1, CHARACTERS_A_PART // wanted.k))):
            asked += len(part.places)
            done = part.first + len(part.texts)
            written.append((done, None if parts.has(number) else pool.submit(answer, number, part)))
            if len(written) > PARTS_AT_ONCE:
                progress(_await(written), queries.count)
        while written:
            progress(_await(written), queries.count)
    finally:
        pool.shutdown(cancel_futures=True)
    if _stamps(queries) != before:
        raise BadInput(f"{source} changed while it was read. Run the command again once the file is complete.")
    account = _account(queries, asked).check(str(source))
    observations = tuple(f"{count:,} {text}" for count, text in note_lines(queries.table.notes(), TABLE_NOTES))
    return Matched(account, parts.join(guard_formulas), tuple(queries.problems), observations)


def _account(queries: Queries, asked: int) -> RowAccount:
    skipped = {"blank_query": queries.blank, "bad_row": queries.skipped, "blank_line": queries.blank_lines}
    read = queries.count + queries.blank_lines
    return RowAccount(read=read, written=asked, skipped={why: count for why, count in skipped.items() if count})


def format_of(path: Path) -> str:
    """Return the format of a target by its suffix. Raises BadInput."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"{path}: the ending {path.suffix!r} is none of {', '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


def _await(written: deque[tuple[int, Future[None] | None]]) -> int:
    """Wait for the first part; return how many queries are answered then. Raises its exception."""
    done, first = written.popleft()
    if first is not None:
        first.result()
    return done


class Parts:
    """The parts of a run, in a folder beside its target; each is whole or not there."""

    def __init__(self, target: Path, question: dict[str, Any]) -> None:
        self.target, self.folder = target, target.with_name(f".{target.name}.parts")
        if self._earlier_question() != question:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / QUESTION).write_text(json.dumps(question), encoding="utf-8")

    def _earlier_question(self) -> Any:
        """Return the arguments of the parts in the folder; None if the file is missing or truncated."""
        try:
            return json.loads((self.folder / QUESTION).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def has(self, number: int) -> bool:
        """Return whether an earlier run wrote a part."""
        return self._path(number).is_file()

    def write(self, number: int, matches: pa.Table) -> None:
        """Write a part under a temporary name, then rename it."""
        aside = self.folder / f"half-{number:08}"
        with aside.open("wb") as file:  # Arrow itself takes only paths that are UTF-8
            pq.write_table(matches, file)
        aside.replace(self._path(number))

    def join(self, guard_formulas: bool) -> int:
        """Write the target from all parts, remove them, and return how many matches there are."""
        aside, matches = self.target.with_name(f".{self.target.name}.half"), 0
        with _writer(aside, format_of(self.target)) as write:
            for path in sorted(self.folder.glob("part-*")):
                with path.open("rb") as file:
                    part = pq.read_table(file)
                write(_guarded(part) if guard_formulas else part)
                matches += part.num_rows
        aside.replace(self.target)
        shutil.rmtree(self.folder)
        return matches

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08}"


class _writer:  # reads as a function where it is used
    """Writes tables one behind the other into one file of a format."""

    def __init__(self, path: Path, format_: str) -> None:
        self._file = path.open("wb")
        self._table: Any = None
        self._write: Callable[[pa.Table], object] = self._write_lines
        if format_ != "json":
            make = pq.ParquetWriter if format_ == "parquet" else pyarrow.csv.CSVWriter
            self._table = make(self._file, MATCHES)
            self._write = self._table.write_table

    def _write_lines(self, table: pa.Table) -> None:
        for record in table.to_pylist():
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def __enter__(self) -> Callable[[pa.Table], object]:
        return self._write

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._table is not None:
                self._table.close()


def _guarded(table: pa.Table) -> pa.Table:
    """Put an apostrophe before each text that a spreadsheet would run as a formula."""
    for place, column_field in enumerate(table.schema):
        if pa.types.is_large_string(column_field.type):
            column = pc.replace_substring_regex(table.column(place), FORMULA_STARTS, r"'\0")
            table = table.set_column(place, column_field, column)
    return table


def _matches(retriever: Retriever, part: Part, wanted: Wanted) -> pa.Table:
    """Return the matches of a part's queries."""
    asked = part.places
    if not asked:
        return MATCHES.empty_table()
    texts = [part.texts[place] or "" for place in asked]
    ranking = retriever.search_rows(
        texts, wanted.k, weight=wanted.weight, filter=wanted.filter, min_score=wanted.min_score
    )
    return _table(retriever, ranking, np.array(asked) + part.first, texts)


def _table(retriever: Retriever, ranking: Ranking, row_Q: np.ndarray, texts: Sequence[str]) -> pa.Table:
    query_M, rank_M = np.nonzero(ranking.rows_QK != NO_ROW)
    labels = _labels(retriever, ranking.rows_QK[query_M, rank_M])
    shares = (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK)
    columns = [
        pa.array(row_Q[query_M]),
        pa.array(texts, pa.large_string()).take(pa.array(query_M)),
        pa.array(rank_M + 1, pa.int32()),
        labels.column("id"),
        labels.column("text"),
        *(pa.array(share_QK[query_M, rank_M].astype(np.float32)) for share_QK in shares),
    ]
    return pa.table(columns, schema=MATCHES)


def _labels(retriever: Retriever, row_M: np.ndarray) -> pa.Table:
    """Return ids and texts of labels by row, in several chunks, since they may exceed 2 GB in total."""
    table, schema = (
        retriever.labels.table.select(["id", "text"]),
        pa.schema([MATCHES.field("id"), MATCHES.field("text")]),
    )
    pieces = [
        table.take(pa.array(row_M[start : start + HITS_AT_ONCE])).cast(schema)
        for start in range(0, len(row_M), HITS_AT_ONCE)
    ]
    return pa.concat_tables(pieces) if pieces else schema.empty_table()


def _question(retriever: Retriever, queries: Queries, reading: Reading, wanted: Wanted) -> dict[str, Any]:
    """Return the arguments that parts must have been made with to be reused."""
    manifest = hashlib.sha256(retriever.manifest.model_dump_json().encode()).hexdigest()
    paused = hashlib.sha256("\0".join(sorted(retriever.paused)).encode()).hexdigest()
    how: dict[str, Any] = json.loads(json.dumps({**asdict(wanted), **asdict(reading), "column": queries.column}))
    part = [QUERIES_PER_PART, CHARACTERS_A_PART]
    return {"bundle": manifest, "paused": paused, "source": _stamps(queries), "wanted": how, "part": part}


def _stamps(queries: Queries) -> list[list[Any]]:
    """Return path, size and time of change of each file of the queries."""
    statuses = [(path, path.stat()) for path in queries.table.files]
    return [[str(path.resolve()), status.st_size, status.st_mtime_ns] for path, status in statuses]
