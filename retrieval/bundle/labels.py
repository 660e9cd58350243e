"""The label table of a bundle: id, text and attributes, in an Arrow file that is used without copying."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.bundle.arrow_file import read_uncompressed
from retrieval.bundle.index_file import Buffer
from retrieval.errors import BundleError, one_line
from retrieval.system.safe_open import read_file

LARGEST_32_BIT_COLUMN = 2**31 - 2**20  # bytes; text of this size still has 32-bit offsets


class LabelTable:
    """Labels by row number."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._readers = {name: _reader(table.column(name)) for name in table.column_names}

    @classmethod
    def open(cls, path: Path) -> "LabelTable":
        """Read a labels.arrow. Raises BundleError."""
        try:
            return cls.parse(read_file(path), path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error

    @classmethod
    def parse(cls, content: Buffer, path: Path) -> "LabelTable":
        """View the bytes of a labels.arrow, named `path` in errors. Raises BundleError."""
        try:
            table = read_uncompressed(pa.py_buffer(content))
            table.validate(full=True)  # Arrow does not check the offsets of texts and lists when it reads
        except (pa.ArrowException, ValueError, OSError) as error:
            raise BundleError(f"{path} is not an Arrow file ({one_line(error)}). Export the bundle again.") from error
        for name in ("id", "text"):
            column = table.schema.get_field_index(name)
            if column < 0 or not _is_text(table.schema.field(column).type) or table.column(column).null_count:
                raise BundleError(
                    f"{path}: the column {name!r} must be text without missing values. Export the bundle again."
                )
        return cls(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return a dict of all columns per row number, in the given order."""
        return [{"id": id_, "text": text, **attributes} for id_, text, attributes in self.records(rows.tolist())]

    def records(self, rows: list[int]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Return id, text and attributes of some rows, in the given order."""
        values = {name: read(rows) for name, read in self._readers.items()}
        ids, texts = values.pop("id"), values.pop("text")
        if not values:
            return zip(ids, texts, ({} for _ in rows), strict=True)
        attributes = (dict(zip(values, one, strict=True)) for one in zip(*values.values(), strict=True))
        return zip(ids, texts, attributes, strict=True)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of some rows."""
        return self._readers["id"](rows.tolist())


def write_labels(path: Path, table: pa.Table) -> None:
    """Write a label table as one Arrow record batch, so that a row is looked up without searching for its batch."""
    table = pa.table({name: _compact(table.column(name)) for name in table.column_names})
    with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _compact(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column as one chunk; text gets 32-bit offsets if it fits, which saves four bytes per label."""
    if pa.types.is_string(column.type):
        column = column.cast(pa.large_string())  # joining more than 2 GB needs 64-bit offsets
    joined = pa.chunked_array([column.combine_chunks()], column.type)
    fits = pa.types.is_large_string(column.type) and joined.nbytes < LARGEST_32_BIT_COLUMN
    return joined.cast(pa.string()) if fits else joined


def _reader(column: pa.ChunkedArray) -> Callable[[list[int]], list[Any]]:
    """Return a function that looks up a column's values by row.

    Texts are sliced from their buffer. For the few rows of one answer, Arrow's `take` needs a tenth of the search time.
    """
    if column.num_chunks != 1 or column.null_count or not _is_text(column.type):
        return lambda rows: column.take(pa.array(rows, pa.int64())).to_pylist()
    (texts,) = column.chunks
    _, ends, data = texts.buffers()
    ends_L = memoryview(ends).cast("q" if pa.types.is_large_string(column.type) else "i")[texts.offset :]
    bytes_ = memoryview(data)
    return lambda rows: [str(bytes_[ends_L[row] : ends_L[row + 1]], "utf-8") for row in rows]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
