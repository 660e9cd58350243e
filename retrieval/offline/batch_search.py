"""Search for all queries of a table and write a file of matches, one row per hit.

Queries are processed in shards, so memory does not grow with their number. Each shard is written to a file, and a run
that was interrupted continues after the shards that it has written.

The engine decides where the shards are searched: in threads of this process, or in the workers of a Ray cluster.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from retrieval.errors import BadInput
from retrieval.offline.query_files import Queries
from retrieval.offline.shard_search import EmbeddedEngine, SearchEngine, SearchOptions, manifest_hash
from retrieval.offline.shards import Shards, format_of
from retrieval.retriever import Retriever
from retrieval.system.progress import Progress
from retrieval.tables.account import RowAccount
from retrieval.tables.delimited import Layout
from retrieval.tables.notes import TABLE_NOTES, note_lines

QUERIES_PER_SHARD = 8_192
CHARACTERS_PER_SHARD = 2**25  # of queries, each counted once per match


@dataclass(frozen=True)
class QueryFormat:
    """How to read queries: the column (None: `query`, or `text`), the layout, and whether to skip bad rows."""

    column: str | None = None
    layout: Layout = field(default_factory=Layout)
    skip_bad_rows: bool = False


@dataclass(frozen=True)
class BatchResult:
    """The result of a run: row counts, number of matches, messages for the first skipped rows, and observations."""

    account: RowAccount
    matches: int
    skipped_first: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()


def batch_search(
    retriever: Retriever, source: Path | str, target: Path, query_format: QueryFormat, options: SearchOptions,
    progress: Progress, *, guard_formulas: bool = False, queries_per_shard: int = QUERIES_PER_SHARD,
    start_engine: Callable[[], SearchEngine] | None = None,
) -> BatchResult:  # fmt: skip
    """Search for every query of `source` and write `target`, Parquet, CSV or JSON Lines by its suffix.

    Resumes an interrupted run with the same arguments from its shards next to `target`; other shards are removed. The
    engine may be another one then. start_engine: called once the queries are counted; None: search in this process.
    guard_formulas: in CSV, texts that a spreadsheet would run as formulas get a leading apostrophe.
    Raises BadInput, and InternalError if the row counts do not add up.
    """
    queries = Queries(source, query_format.column, layout=query_format.layout, skip_bad_rows=query_format.skip_bad_rows)
    _check_target(target, guard_formulas)
    files_before = _file_stamps(queries)
    queries.scan()
    shards = Shards(target, run_arguments(retriever, queries, query_format, options, queries_per_shard))
    answered = 0
    engine = EmbeddedEngine(retriever) if start_engine is None else start_engine()
    try:
        pending: deque[tuple[int, Future[None] | None]] = deque()  # in the order of the queries; None: already written
        for number, shard in enumerate(queries.shards(queries_per_shard, max(1, CHARACTERS_PER_SHARD // options.k))):
            answered += len(shard.places)
            done = shard.first_row + len(shard.texts)
            write = partial(shards.write, number)
            pending.append((done, None if shards.has(number) else engine.submit(shard, options, write)))
            if len(pending) > engine.concurrent_shards:
                progress(_await_first(pending), queries.count)
        while pending:
            progress(_await_first(pending), queries.count)
    finally:
        engine.close()
    if _file_stamps(queries) != files_before:
        raise BadInput(f"{queries.path} changed while it was read. Run the command again once the file is complete.")
    account = _account(queries, answered).check(str(queries.path))
    observations = tuple(f"{count:,} {text}" for count, text in note_lines(queries.table.notes(), TABLE_NOTES))
    return BatchResult(account, shards.join(guard_formulas), tuple(queries.problems), observations)


def run_arguments(
    retriever: Retriever,
    queries: Queries,
    query_format: QueryFormat,
    options: SearchOptions,
    queries_per_shard: int = QUERIES_PER_SHARD,
) -> dict[str, Any]:
    """Return the arguments of a run; the shards of an earlier run are reused only if they are equal."""
    paused = hashlib.sha256("\0".join(sorted(retriever.paused)).encode()).hexdigest()
    values = {**asdict(options), **asdict(query_format), "column": queries.column}
    return {
        "bundle": manifest_hash(retriever),
        "paused": paused,
        "source": _file_stamps(queries),
        "options": json.loads(json.dumps(values)),
        "shard": [queries_per_shard, CHARACTERS_PER_SHARD],
    }


def _check_target(target: Path, guard_formulas: bool) -> None:
    if guard_formulas and format_of(target) != "csv":
        raise BadInput(f"--guard-formulas is for CSV, and {target} is not CSV. Leave it out.")
    format_of(target)
    if target.exists():
        raise BadInput(f"{target} exists already. Remove it, or choose another --output.")


def _account(queries: Queries, answered: int) -> RowAccount:
    skipped = {"blank_query": queries.blank, "bad_row": queries.skipped, "blank_line": queries.blank_lines}
    read = queries.count + queries.blank_lines
    return RowAccount(
        read=read, written=answered, skipped={reason: count for reason, count in skipped.items() if count}
    )


def _await_first(pending: deque[tuple[int, Future[None] | None]]) -> int:
    """Wait for the first shard; return how many queries are answered then. Raises its exception."""
    done, future = pending.popleft()
    if future is not None:
        future.result()
    return done


def _file_stamps(queries: Queries) -> list[list[Any]]:
    """Return path, size and time of change of each file of the queries."""
    return [file.stamp for file in queries.table.files]
