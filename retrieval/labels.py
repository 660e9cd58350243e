"""The label table of a bundle: id, text and any attributes, in an Arrow file that is memory-mapped, not read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.errors import BundleError


class LabelTable:
    """Labels by row number."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def open(cls, path: Path) -> "LabelTable":
        """Map a labels.arrow; raises BundleError when it is not such a file."""
        try:
            # The mapping stays alive as long as the table refers to it.
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise BundleError(f"{path} is not an Arrow file ({error}). Export the bundle again.") from error
        for name in ("id", "text"):
            column = table.schema.get_field_index(name)
            if column < 0 or not _is_text(table.schema.field(column).type) or table.column(column).null_count:
                raise BundleError(f"{path}: the column {name!r} must be text without gaps. Export the bundle again.")
        return cls(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """One dict of all columns for each row number, in the order asked for."""
        found: list[dict[str, Any]] = self.table.take(pa.array(rows)).to_pylist()
        return found

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of some rows."""
        found: list[str] = self.table.column("id").take(pa.array(rows)).to_pylist()
        return found


def write_labels(path: Path, table: pa.Table) -> None:
    """Write a label table as one Arrow record batch, so that a row is found without a search for its batch."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
