"""Read a click log, a row per (query, label) pair, into the rows, labels and exposures of a dataset."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.errors import DatasetError, one_line
from retrieval.system.limits import available_cores, free_memory
from retrieval.tables.notes import Notes
from retrieval.tables.table import Table
from training.data.meta import DayCounts, LabelRename, Period
from training.data.ragged import Ragged
from training.prepare.bad_rows import MAX_MESSAGES, BadRows
from training.prepare.clicks import tables, time_split, weights
from training.prepare.clicks.examination import estimate_examination
from training.prepare.clicks.examination_table import examination_table
from training.prepare.clicks.labels import log_labels
from training.prepare.clicks.parts import PartCells, PartReader, read_parts, remove_unused
from training.prepare.progress_bar import ProgressBar
from training.prepare.settings import PrepareSettings
from training.prepare.source_data import Positives, SourceData, text_column
from training.prepare.sources.columns import Columns, option
from training.prepare.sources.label_table import SourceLabels

MAX_VALIDATION_QUERIES = 2_000  # about; training evaluates at most as many, so more would be lost to training
LEAST_WEIGHT = 1e-6  # of a positive whose clicks have decayed
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
    """Reads a click log in steps: parts into cells, cells into pairs, pairs into source data."""

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

    def read(self, table: Table, folder: Path, bar: ProgressBar) -> LogResult:
        """Read a table; a part whose cells `folder` has already is not read again.

        Raises DatasetError for a table without rows, for bad rows that are not skipped, and for examination
        probabilities that cannot be estimated.
        """
        connection, columns = self._connection, self._columns
        keys_are_ids = self._labels.closed or columns.label_text is not None
        reader = PartReader(connection, columns, self._settings.max_characters, keys_are_ids=keys_are_ids)
        layout = f"{self._settings.separator} {self._settings.quoting}"
        cells = read_parts(reader, table.parts, folder, layout, bar, available_cores())
        remove_unused(folder, cells)
        read = self._count_rows(table, cells)
        if not any(one.files for one in cells):
            self._bad_rows.raise_if_any(str(table.path))
            raise DatasetError(f"{table.path} has bad rows only. Correct them.")
        bar.describe("merging queries and labels")
        tables.open_cells(connection, folder, cells)
        self._leave_out_unknown_labels(table)
        self._bad_rows.raise_if_any(str(table.path))
        self._notes.add("merged_spellings", tables.build_queries(connection))
        tables.build_labels(connection, len(columns.attributes))
        period = self._period()
        tables.code_cells(connection, period, MAX_VALIDATION_QUERIES)
        bar.describe("weighing clicks")
        examination_P = self._examination()
        has_sources = columns.source is not None
        weights.build_pairs(connection, self._settings, period, examination_P, has_sources=has_sources)
        bar.describe("collecting pairs")
        self._count_pairs()
        renames = tables.renamed_labels(connection).to_pylist() if columns.label_text else []
        renamed = {row["label"]: (row["earlier"], row["latest"]) for row in renames}
        return LogResult(
            data=self._source_data(),
            read=read,
            skipped=self._skipped,
            days=self._days(),
            period=_recorded(period),
            renamed=tuple(LabelRename(id=id, before=before, now=now) for id, (before, now) in renamed.items()),
            rename_lines=[_rename_line(row) for row in renames],
            examination=None if examination_P is None else tuple(examination_P.tolist()),
        )

    def _count_rows(self, table: Table, cells: list[PartCells]) -> int:
        """Count the rows of all parts; return how many were read."""
        read, blank, bad = (sum(getattr(one, name) for one in cells) for name in ("read", "blank", "bad"))
        if read == blank:
            content = "has only blank lines" if read else "has a header but no rows" if table.names else "has no rows"
            raise DatasetError(f"{table.path} {content}. Give a file with rows.")
        self._skipped.update(blank_line=blank, bad_row=bad)
        self._bad_rows.add([message for one in cells for message in one.messages], bad)
        more = sum(one.more_clicks_than_impressions for one in cells) if self._columns.impressions else 0
        self._notes.add("more_clicks_than_impressions", more)
        for one in cells:
            self._notes.update(one.notes)
        for name in table.unread:
            self._notes.add("unread_files", 1, name)
        return int(read)

    def _leave_out_unknown_labels(self, table: Table) -> None:
        """Count rows whose label is not in the label table as bad rows, unless the log has the texts of its labels."""
        if not self._labels.closed or self._columns.label_text:
            return
        unknown = tables.leave_out_unknown_labels(self._connection, text_column(list(self._labels.number_of_key)))
        messages = []
        for part, place, label, rows in unknown[:MAX_MESSAGES]:
            more = f" The file has {rows:,} such rows." if rows > 1 else ""
            messages.append(f"{table.parts[part].place_text(place)}: {self._labels.unknown(label)}{more}")
        total = sum(rows for *_, rows in unknown)
        self._skipped["bad_row"] += total
        self._bad_rows.add(messages, total)

    def _period(self) -> time_split.Period | None:
        first, last = self._connection.execute("SELECT min(day), max(day) FROM cells").fetchall()[0]
        return time_split.split_period(first, last, self._settings) if first is not None else None

    def _examination(self) -> npt.NDArray[np.float64] | None:
        """Return the examination probability per position; None if clicks are not weighted by position."""
        if self._columns.position is None:
            return None
        try:
            weights.check_positions(self._connection)
            if self._settings.examination:
                return examination_table(Path(self._settings.examination))
            cells = weights.position_cells(self._connection, MAX_POSITION_CELLS)
            if not cells.num_rows:
                raise DatasetError(
                    "No pair was shown at several positions, so examination cannot be estimated. Give a table with "
                    "--examination, or leave out --position-column."
                )
            pair_N = np.unique(np.asarray(cells["pair"]), return_inverse=True)[1]
            counts = (np.asarray(cells[name]) for name in ("position", "clicks", "impressions"))
            return estimate_examination(pair_N, *counts)
        except DatasetError:
            if self._settings.position_column or self._settings.examination:
                raise
            self._notes.add("positions_not_used", 1)  # the column was only recognised by its name
            return None

    def _count_pairs(self) -> None:
        """Count the rows that are no positive of their own, by reason."""
        reasons = {
            weights.EXPOSURE: "exposure", weights.FEW_CLICKS: "below_min_clicks",
            weights.LOW_CTR: "below_min_ctr", weights.POSITIVE: None,
        }  # fmt: skip
        counted = self._connection.execute("SELECT kind, count(*), sum(rows)::BIGINT FROM pairs GROUP BY kind")
        for kind, pairs, rows in counted.fetchall():
            self._skipped["repeated_pair"] += rows - pairs
            if (reason := reasons[kind]) is not None:
                self._skipped[reason] += pairs

    def _days(self) -> dict[str, DayCounts]:
        if self._columns.date is None:
            return {}
        counted = self._connection.execute(
            "SELECT day, sum(rows)::BIGINT, sum(clicks)::BIGINT, count(DISTINCT (iid, lid)) FILTER (clicks > 0) "
            "FROM coded GROUP BY day ORDER BY day"
        )
        return {
            day.isoformat(): DayCounts(rows=rows, clicks=clicks, positives=positives)
            for day, rows, clicks, positives in counted.fetchall()
        }

    def _source_data(self) -> SourceData:
        connection, dates = self._connection, self._columns.date is not None
        connection.execute(
            "CREATE TABLE query_rows AS SELECT iid, split, (row_number() OVER (ORDER BY min(first)) - 1)::INTEGER "
            f"AS row FROM pairs WHERE kind = {weights.POSITIVE} GROUP BY iid, split"
        )
        rows = connection.sql(
            "SELECT text, split, hash_1, hash_2 FROM query_rows JOIN queries USING (iid) ORDER BY row"
        ).to_arrow_table()
        labels = log_labels(connection, self._labels, self._columns.attributes, dates=dates)
        return SourceData(
            label_ids=labels.ids,
            label_texts=labels.texts,
            label_columns=labels.columns,
            is_label_L=labels.is_label_L,
            ids=text_column([str(row) for row in range(1, rows.num_rows + 1)]),
            texts=text_column(rows["text"]),
            split_R=np.asarray(rows["split"]).astype(np.int8),
            hash_R2=np.stack([np.asarray(rows["hash_1"]), np.asarray(rows["hash_2"])], axis=1),
            positives=self._positives(labels.number_of_lid, rows.num_rows, dates),
            exclude=Ragged.empty(rows.num_rows),
            listed=self._labels.listed,
            from_pairs=True,
            exposures=self._exposures(labels.number_of_lid, dates),
        )

    def _positives(self, number_of_lid: npt.NDArray[np.int32], n_rows: int, dates: bool) -> Positives:
        days = ", first_day, last_day" if dates else ""
        pairs = self._connection.sql(
            f"SELECT row, lid, weight::FLOAT AS weights{days} FROM pairs JOIN query_rows USING (iid, split) "
            f"WHERE kind = {weights.POSITIVE} ORDER BY row, first, lid"
        ).to_arrow_table()
        lengths = np.bincount(np.asarray(pairs["row"]), minlength=n_rows)
        labels = Ragged.from_lengths(number_of_lid[np.asarray(pairs["lid"])], lengths)
        columns = {name: np.asarray(pairs[name]) for name in pairs.column_names[2:]}
        columns["weights"] = np.maximum(columns["weights"], LEAST_WEIGHT)
        if (columns["weights"] == 1).all():
            del columns["weights"]
        return Positives(labels, columns)

    def _exposures(self, number_of_lid: npt.NDArray[np.int32], dates: bool) -> Any:
        days = ", first_day, last_day" if dates else ""
        table = self._connection.sql(
            f"SELECT text AS query, hash_1, row, pairs.split, lid AS label, impressions{days} FROM pairs "
            "JOIN queries USING (iid) LEFT JOIN query_rows USING (iid, split) "
            f"WHERE kind = {weights.EXPOSURE} AND impressions > 0 ORDER BY first, lid"
        ).to_arrow_table()
        numbers = pa.array(number_of_lid[np.asarray(table["label"])])
        return table.set_column(table.column_names.index("label"), "label", numbers) if table.num_rows else None


def _rename_line(rename: Mapping[str, Any]) -> str:
    last = f" (last on {rename['day']})" if rename["day"] else ""
    return f"label {rename['label']}: {rename['earlier']!r}{last} is now {rename['latest']!r}"


def _recorded(period: time_split.Period | None) -> Period | None:
    return None if period is None else Period(**{name: day and day.isoformat() for name, day in vars(period).items()})
