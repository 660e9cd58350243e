"""A fingerprint of what a dataset says, whatever Parquet's compression, chunks or writer made of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from training.data.dataset import Split
    from training.data.ragged import Ragged

ROWS_AT_ONCE = 65_536


def fingerprint(label_table: Any, splits: "Mapping[Any, Split]") -> str:
    """SHA-256 (64 hexadecimal digits) of the label table's columns and of each split's rows, in order."""
    digest = hashlib.sha256()
    for name in label_table.column_names:
        _add_column(digest, f"labels.{name}", label_table[name])
    for name, split in splits.items():
        _add_column(digest, f"{name}.id", split.ids_column)
        _add_column(digest, f"{name}.text", split.texts_column)
        _add_ragged(digest, f"{name}.labels", split.labels)
        _add_ragged(digest, f"{name}.exclude", split.exclude)
    return digest.hexdigest()


def _add_column(digest: "hashlib._Hash", name: str, column: Any) -> None:
    digest.update(f"\0{name}:{len(column)}\0".encode())
    for start in range(0, len(column), ROWS_AT_ONCE):
        values = column.slice(start, ROWS_AT_ONCE).to_pylist()
        digest.update(json.dumps(values, default=str).encode())


def _add_ragged(digest: "hashlib._Hash", name: str, rows: "Ragged") -> None:
    digest.update(f"\0{name}:{len(rows)}\0".encode())
    digest.update(rows.offsets.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(rows.values, dtype="<i4").tobytes())
