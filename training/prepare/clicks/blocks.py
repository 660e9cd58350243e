"""Blocks of a click log: rows of one or several files, added up, with numbers instead of texts.

A block is three Parquet files, whose numbers count from 0 in the order of the first occurrence:

    NAME.spellings.parquet  a row per spelling of a query: spelling, query (number of its identity), clicks, rows
    NAME.labels.parquet     a row per label, label text and attributes: label (number), key, label_text, attribute_0 …,
                            rows, first, latest, first_day, last_day
    NAME.cells.parquet      a row per query, label, split, day, position and origin (source of clicks): clicks,
                            impressions, rows

`first` is the place of the first row, `latest` the latest day and the place of its last row. A place is the number of
the part in the block · PLACES_PER_PART + the line or row. Blocks merge to one block: all sums are integers, so the
result does not depend on how rows are divided into blocks.

Shapes: S spellings, Q queries, L labels, N rows of a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from retrieval.errors import DatasetError, one_line
from retrieval.system.atomic_files import atomic_file
from training.data.meta import DayCounts
from training.prepare.clicks.vocabulary import TEXT, Vocabulary

PLACES_PER_PART = 2**40
BLOCKS_AT_ONCE = 8  # whose texts are in memory
ROWS_PER_BATCH = 1_000_000
FILES = ("spellings", "labels", "cells")
ATTRIBUTE = "attribute_"  # beginning of the names of attributes
NO_DAY = date(1, 1, 1)  # earlier than all others
DIMENSIONS = {"split": pa.int8(), "day": pa.date32(), "position": pa.int64(), "origin": TEXT}
PLACES = {
    "rows": pa.int64(), "first": pa.int64(), "latest": pa.struct({"day": pa.date32(), "place": pa.int64()}),
    "first_day": pa.date32(), "last_day": pa.date32(),
}  # fmt: skip
COUNTS = {"clicks": pa.int64(), "impressions": pa.int64(), "rows": pa.int64()}


@dataclass(frozen=True)
class BlockForm:
    """The columns of a log: its dimensions of cells, whether it has label texts, and its number of attributes."""

    dimensions: tuple[str, ...]
    has_texts: bool
    attributes: int

    @property
    def label_keys(self) -> tuple[str, ...]:
        """Return the columns whose values a row of `labels` stands for."""
        texts = ("text",) if self.has_texts else ()
        return ("label", *texts, *(f"{ATTRIBUTE}{number}" for number in range(self.attributes)))

    @property
    def cell_schema(self) -> pa.Schema:
        """Return the columns of cells."""
        types = {name: DIMENSIONS[name] for name in self.dimensions}
        return pa.schema({"query": pa.int32(), "label": pa.int32(), **types, **COUNTS})

    @property
    def label_schema(self) -> pa.Schema:
        """Return the columns of label rows."""
        keys = {name: TEXT if name.startswith(ATTRIBUTE) else pa.int32() for name in self.label_keys}
        return pa.schema({**keys, **PLACES})


class Block(BaseModel):
    """The name of a block, and its counts by day."""

    name: str
    days: dict[str, DayCounts] = {}

    def paths(self, folder: Path) -> dict[str, Path]:
        """Return the files of the block."""
        return {file: folder / f"{self.name}.{file}.parquet" for file in FILES}


class BlockSource(ABC):
    """Rows with numbers that can be written as a block. `vocabulary` has the texts of the numbers."""

    def __init__(self, form: BlockForm, vocabulary: Vocabulary) -> None:
        self.form, self.vocabulary = form, vocabulary

    @abstractmethod
    def cells(self) -> Iterator[Any]:
        """Yield the rows as Arrow record batches of `form.cell_schema`, not yet added up."""

    @abstractmethod
    def label_rows(self) -> Iterator[Any]:
        """Yield the labels of the rows as Arrow record batches of `form.label_schema`, not yet added up."""


class RowSource(BlockSource):
    """Rows of one part, with the columns query, label, place and those that the log has besides."""

    def __init__(self, rows: Any, form: BlockForm) -> None:
        spelling_N, spellings = _encoded(rows["query"])
        label_N, labels = _encoded(rows["label"])
        text_N, texts = _encoded(rows["label_text"]) if form.has_texts else (None, None)
        super().__init__(form, Vocabulary(spellings, labels, texts))
        self._rows = rows
        self._numbers = {"query": pa.array(self.vocabulary.query_S[spelling_N]), "label": pa.array(label_N)}
        ones = pa.array(np.ones(rows.num_rows, np.int64))
        self._counts = {name: rows[name] if name in rows.column_names else ones for name in COUNTS}
        self.vocabulary.count(spelling_N, self._counts["clicks"], ones)
        self._label_keys = {"label": self._numbers["label"], "text": None if text_N is None else pa.array(text_N)}

    def cells(self) -> Iterator[Any]:
        """Yield the rows as Arrow record batches."""
        dimensions = {name: self._rows[name] for name in self.form.dimensions}
        table = pa.table({**self._numbers, **dimensions, **self._counts})
        yield from table.cast(self.form.cell_schema).to_batches()

    def label_rows(self) -> Iterator[Any]:
        """Yield the labels of the rows as Arrow record batches."""
        rows, form = self._rows, self.form
        days = rows["day"] if "day" in rows.column_names else pa.nulls(rows.num_rows, pa.date32())
        keys = {name: self._label_keys[name] if name in self._label_keys else rows[name] for name in form.label_keys}
        latest = _latest(pc.fill_null(days, NO_DAY), rows["place"])
        ones = pa.array(np.ones(rows.num_rows, np.int64))
        places = {"rows": ones, "first": rows["place"], "latest": latest, "first_day": days, "last_day": days}
        yield from pa.table({**keys, **places}).cast(form.label_schema).to_batches()


class MergedBlocks(BlockSource):
    """The rows of several blocks with common numbers."""

    def __init__(self, folder: Path, blocks: Sequence[Block], first_parts: Sequence[int], form: BlockForm) -> None:
        """`first_parts`: the number of the first part of each block."""
        super().__init__(form, Vocabulary())
        self.blocks, self._folder, self._first_parts = blocks, folder, first_parts
        self._query_QB: list[npt.NDArray[np.int32]] = []  # of each block: the new number of each of its queries
        self._label_LB: list[npt.NDArray[np.int32]] = []
        self._label_text_NB: list[npt.NDArray[np.int32]] = []  # of each row of its labels
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            group = blocks[start : start + BLOCKS_AT_ONCE]
            with ThreadPoolExecutor(2) as pool:
                futures = [pool.submit(self._add_queries, group), pool.submit(self._add_labels, group)]
            for future in futures:
                future.result()

    def _add_queries(self, blocks: Sequence[Block]) -> None:
        vocabulary, tables = self.vocabulary, [_read(block.paths(self._folder)["spellings"]) for block in blocks]
        numbers = vocabulary.add_spellings([_flat(table["spelling"]) for table in tables])
        for table, spelling_S in zip(tables, numbers, strict=True):
            vocabulary.count(spelling_S, table["clicks"], table["rows"])
            self._query_QB.append(_renumbering(table["query"], vocabulary.query_S[spelling_S]))

    def _add_labels(self, blocks: Sequence[Block]) -> None:
        names = ["label", "key", *(["label_text"] if self.form.has_texts else [])]
        tables = [_read(block.paths(self._folder)["labels"], names) for block in blocks]
        numbers = self.vocabulary.labels.add([_flat(table["key"]) for table in tables])
        self._label_LB += [
            _renumbering(table["label"], label_N) for table, label_N in zip(tables, numbers, strict=True)
        ]
        if self.form.has_texts:
            self._label_text_NB += self.vocabulary.label_texts.add([_flat(table["label_text"]) for table in tables])

    def cells(self, since: date | None = None) -> Iterator[Any]:
        """Yield the cells of all blocks as Arrow record batches; of those that have a day from `since` on, if given."""
        schema = self.form.cell_schema
        for block, query_Q, label_L in zip(self.blocks, self._query_QB, self._label_LB, strict=True):
            if since is not None and max(block.days) < since.isoformat():
                continue
            with block.paths(self._folder)["cells"].open("rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_BATCH):
                    numbers = [query_Q[np.asarray(batch["query"])], label_L[np.asarray(batch["label"])]]
                    others = [batch[field.name].cast(field.type) for field in list(schema)[2:]]
                    yield pa.record_batch([*map(pa.array, numbers), *others], schema=schema)

    def label_rows(self) -> Iterator[Any]:
        """Yield the labels of all blocks as Arrow record batches, a block at a time."""
        for number, block in enumerate(self.blocks):
            names = [name for name in self.form.label_schema.names if name != "text"]
            table = _read(block.paths(self._folder)["labels"], names)
            shift = self._first_parts[number] * PLACES_PER_PART
            columns = {name: table[name] for name in names}
            columns["label"] = pa.array(self._label_LB[number][np.asarray(table["label"])])
            if self.form.has_texts:
                columns["text"] = pa.array(self._label_text_NB[number])
            latest = _flat(columns["latest"])
            columns["latest"] = _latest(latest.field("day"), pc.add(latest.field("place"), shift))
            columns["first"] = pc.add(columns["first"], shift)
            renumbered = pa.table(columns).select(self.form.label_schema.names)
            yield from renumbered.cast(self.form.label_schema).combine_chunks().to_batches()


def write_block(connection: Any, folder: Path, name: str, source: BlockSource) -> Block:
    """Add up the rows of a source and write them as a block."""
    block = Block(name=name)
    paths, vocabulary, form = block.paths(folder), source.vocabulary, source.form
    counts = {"query": vocabulary.query_S, "clicks": vocabulary.clicks_S, "rows": vocabulary.rows_S}
    _write(pa.table({"spelling": vocabulary.spellings.texts, **counts}), paths["spellings"])
    labels = added_up_labels(connection, source)
    texts = {"key": vocabulary.labels.texts.take(_flat(labels["label"]))}
    if form.has_texts:
        texts["label_text"] = vocabulary.label_texts.texts.take(_flat(labels["text"]))
        labels = labels.drop_columns("text")
    _write(pa.table({**{name: labels[name] for name in labels.column_names}, **texts}), paths["labels"])
    connection.register("rows_of_block", pa.RecordBatchReader.from_batches(form.cell_schema, source.cells()))
    with atomic_file(paths["cells"], unique=True) as temporary:
        connection.execute(
            f"COPY (SELECT {', '.join(('query', 'label', *form.dimensions))}, sum(clicks)::BIGINT AS clicks, "
            "sum(impressions)::BIGINT AS impressions, sum(rows)::BIGINT AS rows FROM rows_of_block GROUP BY ALL) "
            f"TO '{quoted(temporary)}' (FORMAT parquet, COMPRESSION zstd)"
        )
    connection.unregister("rows_of_block")
    if "day" in form.dimensions:
        block.days = _day_counts(connection, f"read_parquet('{quoted(paths['cells'])}')")
    return block


def added_up_labels(connection: Any, source: BlockSource) -> Any:
    """Return the rows of the labels of a source, added up, in order, as an Arrow table."""
    keys = ", ".join(source.form.label_keys)
    connection.register("label_rows", pa.RecordBatchReader.from_batches(source.form.label_schema, source.label_rows()))
    labels = connection.sql(
        f"SELECT {keys}, sum(rows)::BIGINT AS rows, min(first) AS first, max(latest) AS latest, "
        f"min(first_day) AS first_day, max(last_day) AS last_day FROM label_rows GROUP BY {keys} ORDER BY label, first"
    ).to_arrow_table()
    connection.unregister("label_rows")
    return labels


def count_clicked_pairs(connection: Any, cells: str) -> dict[str, int]:
    """Return the number of pairs with a click on each day; `cells` is an SQL table."""
    pairs = f"SELECT DISTINCT day, query, label FROM {cells} WHERE clicks > 0"
    counted = connection.execute(f"SELECT day, count(*) FROM ({pairs}) GROUP BY day").fetchall()
    return {day.isoformat(): pairs for day, pairs in counted}


def _day_counts(connection: Any, cells: str) -> dict[str, DayCounts]:
    """Return the counts of each day of an SQL table."""
    sums = connection.execute(f"SELECT day, sum(rows)::BIGINT, sum(clicks)::BIGINT FROM {cells} GROUP BY day")
    days = {day.isoformat(): (rows, clicks) for day, rows, clicks in sums.fetchall()}
    positives = count_clicked_pairs(connection, cells)
    return {
        day: DayCounts(rows=rows, clicks=clicks, positives=positives.get(day, 0))
        for day, (rows, clicks) in sorted(days.items())
    }


def quoted(path: Path) -> str:
    """Return a path for use inside quotes in SQL."""
    return str(path).replace("'", "''")


def _encoded(column: Any) -> tuple[npt.NDArray[np.int32], Any]:
    """Return the number of each text of an Arrow column, and the distinct texts."""
    encoded = _flat(column).dictionary_encode()
    return np.asarray(encoded.indices), encoded.dictionary


def _flat(column: Any) -> Any:
    """Return a column as one Arrow array; texts with 64-bit offsets."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(TEXT) if pa.types.is_string(array.type) else array


def _latest(day_N: Any, place_N: Any) -> Any:
    return pa.StructArray.from_arrays([_flat(day_N), _flat(place_N)], fields=list(PLACES["latest"]))


def _renumbering(old_N: Any, new_N: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the new number of each old number, from pairs of both; each old number occurs."""
    old_N = np.asarray(old_N)
    result = np.zeros(old_N.max(initial=-1) + 1, np.int32)
    result[old_N] = new_N
    return result


def _read(path: Path, columns: list[str] | None = None) -> Any:
    """Return a table of a block. Raises DatasetError for a damaged file."""
    try:
        with path.open("rb") as file:  # Arrow opens only paths that are UTF-8
            return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read ({one_line(error)[:200]}). Remove it, and run again.") from error


def _write(table: Any, path: Path) -> None:
    with atomic_file(path, unique=True) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, compression="lz4", use_dictionary=False)  # the texts are distinct
