"""The shards of a batch search: one file of matches per shard of queries, until all are joined in one file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from retrieval.errors import BadInput
from retrieval.system.atomic_files import atomic_file, write_text

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
FORMULA_STARTS = r"^[=+\-@\t\r\n＝＋－＠]"  # the start of a formula in spreadsheets, full-width forms included
ARGUMENTS = "arguments.json"  # next to the shards: the arguments that they were made with
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
        ("memory", pa.float32()),
    ]
)


def format_of(path: Path) -> str:
    """Return the format of an output file by its suffix. Raises BadInput."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"{path}: {path.suffix!r} is not an output format. Use one of {', '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


class Shards:
    """The shards of a run, in a folder next to its output; each is complete or missing."""

    def __init__(self, target: Path, arguments: dict[str, Any]) -> None:
        """Keep the shards of an earlier run with the same arguments; remove others."""
        self.target, self.folder = target, target.with_name(f".{target.name}.shards")
        if self._read_arguments() != arguments:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_text(self.folder / ARGUMENTS, json.dumps(arguments))

    def has(self, number: int) -> bool:
        """Return whether an earlier run wrote a shard."""
        return self._path(number).is_file()

    def write(self, number: int, matches: pa.Table) -> None:
        """Write a shard atomically."""
        with atomic_file(self._path(number)) as temporary, temporary.open("wb") as file:
            pq.write_table(matches, file)  # to an open file, since Arrow takes only paths that are UTF-8

    def join(self, guard_formulas: bool) -> int:
        """Write the output from all shards, remove them, and return the number of matches."""
        matches = 0
        with (
            atomic_file(self.target) as temporary,
            _MatchWriter(temporary, format_of(self.target)) as writer,
        ):
            for path in sorted(self.folder.glob("shard-*")):
                with path.open("rb") as file:
                    shard = pq.read_table(file)
                writer.write(_guard_formulas(shard) if guard_formulas else shard)
                matches += shard.num_rows
        shutil.rmtree(self.folder)
        return matches

    def _read_arguments(self) -> Any:
        """Return the arguments of the shards in the folder; None if the file is missing or truncated."""
        try:
            return json.loads((self.folder / ARGUMENTS).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:08}"


class _MatchWriter:
    """Write tables of matches one after another into one file."""

    def __init__(self, path: Path, format_: str) -> None:
        self._file = path.open("wb")
        self._table_writer: Any = None
        self.write: Callable[[pa.Table], object] = self._write_lines
        if format_ != "json":
            make = pq.ParquetWriter if format_ == "parquet" else pyarrow.csv.CSVWriter
            self._table_writer = make(self._file, MATCHES)
            self.write = self._table_writer.write_table

    def _write_lines(self, table: pa.Table) -> None:
        for record in table.to_pylist():
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def __enter__(self) -> "_MatchWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._table_writer is not None:
                self._table_writer.close()


def _guard_formulas(table: pa.Table) -> pa.Table:
    """Put an apostrophe before each text that a spreadsheet would run as a formula."""
    for place, column_field in enumerate(table.schema):
        if pa.types.is_large_string(column_field.type):
            column = pc.replace_substring_regex(table.column(place), FORMULA_STARTS, r"'\0")
            table = table.set_column(place, column_field, column)
    return table
