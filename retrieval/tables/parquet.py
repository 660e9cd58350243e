"""Read Parquet: only the requested columns."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import TableError
from retrieval.tables.arrow_types import is_list
from retrieval.tables.batches import Chunk, Part
from retrieval.tables.columns import Parser
from retrieval.tables.files import TableFile
from retrieval.tables.opening import ReadingProgress, compressed_as

MAX_BATCH_ROWS, MIN_BATCH_ROWS, BATCH_BYTES = 131_072, 1_024, 64 * 2**20


class ParquetPart(Part):
    """One Parquet file with its schema. Rows are counted from 0."""

    unit = "row"

    def __init__(self, file: TableFile) -> None:
        """Read the schema. Raises TableError if it is not a Parquet file."""
        super().__init__(file)
        try:
            self.stored_names = list(self._open().schema_arrow.names)
        except (pa.ArrowException, OSError, ValueError) as error:
            compression = compressed_as(file)
            unpack = f"it is compressed as {compression}. Unpack it"
            reason = unpack if compression else f"{_first_line(error)}. Write it again"
            raise TableError(f"{file.location} cannot be read as Parquet: {reason}.") from error

    def chunks(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[list[Chunk]]:
        """Yield consecutive rows. Raises TableError for a damaged file."""
        done = 0
        try:
            file = self._open()
            total = max(file.metadata.num_rows, 1)
            stored = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            rows = min(max(BATCH_BYTES * total // max(stored, 1), MIN_BATCH_ROWS), MAX_BATCH_ROWS)
            for batch in file.iter_batches(rows, columns=list(columns), use_threads=False):
                places_N = done + np.arange(batch.num_rows)
                yield [Chunk({name: batch.column(name) for name in columns}, places_N)]
                done += batch.num_rows
                progress.at(self.name, self.size * done // total)
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                f"{self.file.location} cannot be read after row {done} ({_first_line(error)}). Write it again."
            ) from error
        progress.finish(self.size)

    def is_list(self, name: str) -> bool:
        """Return whether a column holds lists."""
        return name in self.stored_names and is_list(self._type(name))

    def check_type(self, name: str, parser: Parser) -> None:
        """Raise TableError if the parser cannot read the type of a column."""
        if not parser.reads(kind := self._type(name)):
            raise TableError(
                f"{self.file.location}: column {name!r} has the type {kind}, not text or numbers. Name another column."
            )

    def _type(self, name: str) -> pa.DataType:
        return self._open().schema_arrow.field(self.stored_names.index(name)).type

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.file.open_bytes())  # Arrow opens only paths that are UTF-8


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
