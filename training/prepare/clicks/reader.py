"""Read a click log, a row per (query, label) pair, into the rows, labels and exposures of a dataset."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from retrieval.errors import DatasetError, one_line
from retrieval.system.limits import available_cores, free_memory
from retrieval.tables.notes import Notes
from retrieval.tables.table import Table
from training.data.meta import DayCounts, LabelRename, Period
from training.prepare.bad_rows import MAX_MESSAGES, BadRows
from training.prepare.clicks import time_split, weights
from training.prepare.clicks.blocks import PLACES_PER_PART, Block, MergedBlocks, count_clicked_pairs
from training.prepare.clicks.coded_cells import CodedCells
from training.prepare.clicks.examination import estimate_examination
from training.prepare.clicks.examination_table import examination_table
from training.prepare.clicks.labels import build_labels, log_labels, renamed_labels, unknown_labels
from training.prepare.clicks.pairs import source_data
from training.prepare.clicks.parts import PartBlocks, PartReader, merge_days, read_parts, remove_unused, unmerged
from training.prepare.clicks.vocabulary import Vocabulary
from training.prepare.progress_bar import ProgressBar
from training.prepare.settings import PrepareSettings
from training.prepare.source_data import SourceData
from training.prepare.sources.columns import Columns, option
from training.prepare.sources.label_table import SourceLabels
from training.prepare.split_hash import text_hashes

MAX_VALIDATION_QUERIES = 2_000  # about; training evaluates at most as many, so more would be lost to training
MAX_POSITION_CELLS = 5_000_000  # from which examination probabilities are estimated
MEMORY_SHARE, LEAST_MEMORY, MOST_MEMORY = 0.25, 2**29, 3 * 2**30  # bytes of DuckDB's buffers


@dataclass(frozen=True)
class LogResult:
    """A click log as source data, with its counts for dataset.json."""

    data: SourceData
    read: int
    skipped: Counter[str]
    days: dict[str, DayCounts]
    period: Period | None
    renamed: tuple[LabelRename, ...]  # one per label whose text has changed
    rename_lines: list[str]  # one per earlier text of a label
    examination: tuple[float, ...] | None


@dataclass(frozen=True)
class _Log:
    """The blocks of a log with common numbers. Shape: Q queries."""

    blocks: Sequence[Block]
    vocabulary: Vocabulary
    hash_Q2: npt.NDArray[np.uint64]
    has_all_labels: bool  # false: cells of labels that the label table lacks are left out
    period: time_split.Period | None
    cells: CodedCells


@contextmanager
def log_database(beside: Path) -> Iterator[tuple[Any, Path]]:
    """Yield a DuckDB connection with its database in a temporary folder beside `beside`, and that folder."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        str(beside.parent).encode()
        parent: Path | None = beside.parent.resolve()
    except UnicodeEncodeError:  # DuckDB opens only paths that are UTF-8
        parent = None
    folder = Path(tempfile.mkdtemp(prefix=".prepare.", dir=parent))
    try:
        with _duckdb_errors(beside), duckdb.connect(str(folder / "log.duckdb")) as connection:
            memory = int(min(max(free_memory().free * MEMORY_SHARE, LEAST_MEMORY), MOST_MEMORY))
            connection.execute(f"SET memory_limit = '{memory >> 20}MiB'")
            connection.execute(f"SET threads = {available_cores()}")
            connection.execute("SET preserve_insertion_order = false")
            yield connection, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _duckdb_errors(out: Path) -> Iterator[None]:
    """Raise DatasetError for an error of DuckDB, such as a full disk."""
    try:
        yield
    except duckdb.Error as error:
        raise DatasetError(
            f"{out} was not written: the click log cannot be aggregated ({one_line(error)[:300]}). Free memory, or "
            f"disk space in {out.parent.resolve()}."
        ) from error


class LogReader:
    """Reads a click log in steps: parts into blocks, blocks into pairs, pairs into source data."""

    def __init__(
        self, connection: Any, settings: PrepareSettings, columns: Columns, labels: SourceLabels, notes: Notes,
        bad_rows: BadRows,
    ) -> None:  # fmt: skip
        self._connection, self._settings, self._columns = connection, settings, columns
        self._labels, self._notes, self._bad_rows = labels, notes, bad_rows
        self._skipped = Counter[str]()
        if columns.recognised:
            names = ", ".join(columns.recognised)
            bad_rows.hint = (
                f" Recognised by name: {names}; {option(columns.recognised[-1])} none ignores such a column."
            )

    def read(self, table: Table, folder: Path, bar: ProgressBar, *, cached: bool) -> LogResult:
        """Read a table; a part whose blocks `folder` has already is not read again.

        cached: `folder` is kept for the next run, for which it gets the merged blocks of each day.
        Raises DatasetError for a table without rows, for bad rows that are not skipped, and for examination
        probabilities that cannot be estimated.
        """
        connection, columns = self._connection, self._columns
        layout = f"{self._settings.separator} {self._settings.quoting}"
        reader = PartReader(
            connection, folder, columns, layout, self._settings.max_characters,
            keys_are_ids=self._labels.closed or columns.label_text is not None,
        )  # fmt: skip
        parts = read_parts(reader, table.parts, bar, available_cores())
        read = self._count_rows(table, parts)
        bar.describe("merging queries and labels")
        blocks, first_parts = merge_days(reader, parts, available_cores()) if cached else unmerged(parts)
        remove_unused(folder, parts, blocks)
        log = self._merged(table, MergedBlocks(folder, blocks, first_parts, reader.form))
        bar.describe("weighing clicks")
        examination_P = self._examination(log.cells)
        has_sources = columns.source is not None
        weights.build_pairs(connection, log.cells, self._settings, log.period, examination_P, has_sources=has_sources)
        bar.describe("collecting pairs")
        self._count_pairs(read - self._skipped["blank_line"] - self._skipped["bad_row"])
        dates = columns.date is not None
        labels = log_labels(connection, log.vocabulary, self._labels, columns.attributes, dates=dates)
        data = source_data(connection, log.vocabulary, log.hash_Q2, labels, self._labels.listed, dates=dates)
        return self._result(log, data, read, examination_P)

    def _merged(self, table: Table, source: MergedBlocks) -> _Log:
        """Number the queries and labels of all blocks, and choose the splits."""
        vocabulary = source.vocabulary
        self._notes.add("merged_spellings", len(vocabulary.spellings) - len(vocabulary.identities))
        build_labels(self._connection, source)
        keep_L = self._known_labels(table, vocabulary)
        self._bad_rows.raise_if_any(str(table.path))
        days = [date.fromisoformat(day) for block in source.blocks for day in block.days]
        period = time_split.split_period(min(days), max(days), self._settings) if days else None
        hash_Q2 = text_hashes(vocabulary.identities.texts)
        cells = CodedCells(source, keep_L, period, hash_Q2[:, 1], MAX_VALIDATION_QUERIES)
        return _Log(source.blocks, vocabulary, hash_Q2, bool(keep_L.all()), period, cells)

    def _result(
        self, log: _Log, data: SourceData, read: int, examination_P: npt.NDArray[np.float64] | None
    ) -> LogResult:
        renames = renamed_labels(self._connection, log.vocabulary) if self._columns.label_text else []
        renamed = {row["label"]: (row["earlier"], row["latest"]) for row in renames}
        return LogResult(
            data=data,
            read=read,
            skipped=self._skipped,
            days=self._days(log),
            period=_recorded(log.period),
            renamed=tuple(LabelRename(id=id, before=before, now=now) for id, (before, now) in renamed.items()),
            rename_lines=[_rename_line(row) for row in renames],
            examination=None if examination_P is None else tuple(examination_P.tolist()),
        )

    def _count_rows(self, table: Table, parts: list[PartBlocks]) -> int:
        """Count the rows of all parts; return how many were read."""
        read, blank, bad = (sum(getattr(part, name) for part in parts) for name in ("read", "blank", "bad"))
        if read == blank:
            content = "has only blank lines" if read else "has a header but no rows" if table.names else "has no rows"
            raise DatasetError(f"{table.path} {content}. Give a file with rows.")
        self._skipped.update(blank_line=blank, bad_row=bad)
        self._bad_rows.add([message for part in parts for message in part.messages], bad)
        more = sum(part.more_clicks_than_impressions for part in parts) if self._columns.impressions else 0
        self._notes.add("more_clicks_than_impressions", more)
        for part in parts:
            self._notes.update(part.notes)
        for name in table.unread:
            self._notes.add("unread_files", 1, name)
        if not any(part.blocks for part in parts):
            self._bad_rows.raise_if_any(str(table.path))
            raise DatasetError(f"{table.path} has bad rows only. Correct them.")
        return int(read)

    def _known_labels(self, table: Table, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
        """Return which labels are used. Rows with another label are bad rows.

        All labels are used if there is no label table, or if the log has the texts of its labels.
        """
        keys = vocabulary.labels.texts
        if not self._labels.closed or self._columns.label_text:
            return np.ones(len(keys), np.bool_)
        is_known_L, unknown = unknown_labels(self._connection, keys, list(self._labels.number_of_key))
        messages = []
        for first, label, rows in unknown[:MAX_MESSAGES]:
            part, place = divmod(first, PLACES_PER_PART)
            more = f" The log has {rows:,} such rows." if rows > 1 else ""
            messages.append(f"{table.parts[part].place_text(place)}: {self._labels.unknown(label)}{more}")
        total = sum(rows for *_, rows in unknown)
        self._skipped["bad_row"] += total
        self._bad_rows.add(messages, total)
        return is_known_L

    def _examination(self, cells: CodedCells) -> npt.NDArray[np.float64] | None:
        """Return the examination probability per position; None if clicks are not weighted by position."""
        if self._columns.position is None:
            return None
        try:
            weights.check_positions(self._connection, cells)
            if self._settings.examination:
                return examination_table(Path(self._settings.examination))
            shown = weights.position_cells(self._connection, cells, MAX_POSITION_CELLS)
            if not shown.num_rows:
                raise DatasetError(
                    "No pair was shown at several positions, so examination cannot be estimated. Give a table with "
                    "--examination, or leave out --position-column."
                )
            pair_N = np.unique(np.asarray(shown["pair"]), return_inverse=True)[1]
            counts = (np.asarray(shown[name]) for name in ("position", "clicks", "impressions"))
            return estimate_examination(pair_N, *counts)
        except DatasetError:
            if self._settings.position_column or self._settings.examination:
                raise
            self._notes.add("positions_not_used", 1)  # the column was only recognised by its name
            return None

    def _count_pairs(self, accepted_rows: int) -> None:
        """Count the rows that are no positive of their own, by reason."""
        reasons = {
            weights.EXPOSURE: "exposure", weights.FEW_CLICKS: "below_min_clicks",
            weights.LOW_CTR: "below_min_ctr", weights.POSITIVE: None,
        }  # fmt: skip
        counted = self._connection.execute("SELECT kind, count(*) FROM pairs GROUP BY kind").fetchall()
        self._skipped["repeated_pair"] = accepted_rows - sum(pairs for _, pairs in counted)
        for kind, pairs in counted:
            if (reason := reasons[kind]) is not None:
                self._skipped[reason] += pairs

    def _days(self, log: _Log) -> dict[str, DayCounts]:
        """Return the counts of each day."""
        days: dict[str, DayCounts] = {}
        for block in log.blocks:
            for day, counts in block.days.items():
                total = days.get(day, DayCounts(rows=0, clicks=0, positives=0))
                sums = {name: getattr(total, name) + getattr(counts, name) for name in DayCounts.model_fields}
                days[day] = DayCounts(**sums)
        are_in_one_block = len(days) == sum(len(block.days) for block in log.blocks)
        if days and not (log.has_all_labels and are_in_one_block):  # else a pair may be counted twice
            log.cells.register(self._connection)
            columns = "(SELECT iid AS query, lid AS label, day, clicks FROM coded)"
            positives = count_clicked_pairs(self._connection, columns)
            days = {day: counts.model_copy(update={"positives": positives.get(day, 0)}) for day, counts in days.items()}
        return dict(sorted(days.items()))


def _rename_line(rename: Mapping[str, Any]) -> str:
    last = f" (last on {rename['day']})" if rename["day"] else ""
    return f"label {rename['label']}: {rename['earlier']!r}{last} is now {rename['latest']!r}"


def _recorded(period: time_split.Period | None) -> Period | None:
    return None if period is None else Period(**{name: day and day.isoformat() for name, day in vars(period).items()})
