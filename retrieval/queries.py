"""A file of queries, Parquet, CSV or JSON Lines, read a part at a time."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from retrieval.errors import BadInput

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
COLUMNS = ("query", "text")  # that hold the queries unless somebody says otherwise


class Queries:
    """The queries of a file, read a part at a time."""

    def __init__(self, path: Path, column: str | None) -> None:
        """Open `path`; BadInput when it cannot be read or has no such column of text."""
        self.path, self.blank = path, 0
        if not path.is_file():
            raise BadInput(f"{path} is not a file of queries.")
        try:
            names = _opened(path, None).schema.names
            self.column = column or next((name for name in COLUMNS if name in names), COLUMNS[0])
            if self.column not in names:
                raise BadInput(
                    f"{path} has no column {self.column!r}; it has {', '.join(names)}. Name it with --column."
                )
            self._data = _opened(path, self.column, alone=len(names) == 1)
            self.count = self._data.count_rows()
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{path} cannot be read ({_first_line(error)}).") from error
        kind = self._data.schema.field(self.column).type
        if not _is_text(kind):
            raise BadInput(f"{path}: the column {self.column!r} holds {kind}, no text.")

    def parts(self, size: int) -> Iterator[list[str]]:
        """`size` texts at a time, the last part less; a missing one is an empty text."""
        waiting: list[str] = []
        try:
            for batch in self._data.to_batches(columns=[self.column], batch_size=size):
                waiting += batch.column(0).cast(pa.string()).fill_null("").to_pylist()
                while len(waiting) >= size:
                    yield self._counted(waiting[:size])
                    waiting = waiting[size:]
        except pa.ArrowInvalid as error:
            raise BadInput(f"{self.path} cannot be read to its end ({_first_line(error)}).") from error
        if waiting:
            yield self._counted(waiting)

    def first(self, most: int) -> tuple[list[str], list[list[str]] | None]:
        """At most so many of the first queries that have text, and their true labels' ids.

        Those stand in a column `labels` of lists; None where there is none. BadInput when there is no query.
        """
        truths = "labels" in self._data.schema.names
        head = self._data.head(most, columns=[self.column, *(["labels"] if truths else [])])
        labels = head.column("labels") if truths else None
        if labels is not None and not (pa.types.is_list(labels.type) and _is_text(labels.type.value_type)):
            raise BadInput(f"{self.path}: the column 'labels' holds {labels.type}; give lists of label ids.")
        texts = [text or "" for text in head.column(self.column).to_pylist()]
        asked = [place for place, text in enumerate(texts) if text.strip()]
        if not asked:
            raise BadInput(f"{self.path} holds no query.")
        ids = None if labels is None else labels.to_pylist()
        return [texts[place] for place in asked], None if ids is None else [ids[place] or [] for place in asked]

    def _counted(self, texts: list[str]) -> list[str]:
        self.blank += sum(not text.strip() for text in texts)
        return texts


def _opened(path: Path, column: str | None, *, alone: bool = False) -> pyarrow.dataset.Dataset:
    """A file as Arrow reads it; in CSV `column` is text whatever it looks like, and may hold line breaks.

    Where it stands `alone`, an empty line is a query without text: leaving it out would shift every row behind it.
    """
    if format_of(path) != "csv":
        return pyarrow.dataset.dataset(path, format=format_of(path))
    types = {} if column is None else {column: pa.string()}
    layout = pyarrow.dataset.CsvFileFormat(
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=not alone),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )
    return pyarrow.dataset.dataset(path, format=layout)


def format_of(path: Path) -> str:
    """Arrow's name for the format that a file's ending says; BadInput."""
    if path.suffix not in FORMATS:
        raise BadInput(f"{path}: the ending {path.suffix!r} is none of {', '.join(FORMATS)}.")
    return FORMATS[path.suffix]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
