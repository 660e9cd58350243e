"""Read Parquet: only the requested columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import TableError
from retrieval.tables.opening import ReadingProgress, compressed_as

ROWS_PER_BATCH = 16_384


class ParquetTable:
    """One Parquet file with its schema."""

    def __init__(self, path: Path) -> None:
        """Read the schema. Raises TableError if it is not a Parquet file."""
        self.path = path
        try:
            self._file = pq.ParquetFile(path.open("rb"))  # Arrow opens only paths that are UTF-8
            self.names: list[str] = list(self._file.schema_arrow.names)
        except (pa.ArrowException, OSError, ValueError) as error:
            compression = compressed_as(path)
            unpack = f"it is compressed as {compression}. Unpack it"
            reason = unpack if compression else f"{_first_line(error)}. Write it again"
            raise TableError(f"{path} cannot be read as Parquet: {reason}.") from error

    def rows(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row's place, counted from 0, and its values in `columns`. Raises TableError."""
        for name in columns:
            self._require_plain(name)
        size, done, total = self.path.stat().st_size, 0, self._file.metadata.num_rows
        try:
            for batch in self._file.iter_batches(ROWS_PER_BATCH, columns=list(columns)):
                values = [_values(batch.column(name)) for name in columns]
                for row, record in enumerate(zip(*values, strict=True), done):
                    yield f"{self.path.name} row {row}", dict(zip(columns, record, strict=True))
                done += batch.num_rows
                progress.at(self.path.name, size * done // max(total, 1))
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                f"{self.path} cannot be read after row {done} ({_first_line(error)}). Write it again."
            ) from error
        progress.finish(size)

    def is_list(self, name: str) -> bool:
        """Return whether a column holds lists."""
        return _is_list(self._file.schema_arrow.field(self.names.index(name)).type)

    def arrow(self, columns: Sequence[str]) -> Any:
        """Read some columns as an Arrow table. Raises TableError if the file is damaged."""
        try:
            return self._file.read(columns=list(columns)).select(list(columns))
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{self.path} cannot be read ({_first_line(error)}). Write it again.") from error

    def _require_plain(self, name: str) -> None:
        kind = self._file.schema_arrow.field(self.names.index(name)).type
        if not _is_plain(kind):
            raise TableError(
                f"{self.path}: column {name!r} has the type {kind}, not text or numbers. Name another column."
            )


def _is_plain(kind: Any) -> bool:
    """Return whether a type holds text, numbers or booleans, or lists of these."""
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if _is_list(kind):
        return _is_plain(kind.value_type)
    plain = (
        pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
        pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
    )  # fmt: skip
    return any(check(kind) for check in plain)


def _is_list(kind: Any) -> bool:
    lists = (
        pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
        pa.types.is_large_list_view,
    )  # fmt: skip
    return any(check(kind) for check in lists)


def _values(column: Any) -> list[Any]:
    """Return Python values; bytes become text, with lone surrogates for bytes that are not UTF-8."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(_as_binary(column.type)).to_pylist()
    return [_text(value) for value in values] if _holds_bytes(values) else values


def _holds_bytes(values: list[Any]) -> bool:
    first = next((value for value in values if value is not None and value != []), None)
    return isinstance(first, bytes) or (isinstance(first, list) and any(isinstance(one, bytes) for one in first))


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _as_binary(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _as_binary(kind.value_type)
    if _is_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    return pa.large_binary() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else pa.binary()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
