"""The fingerprint of a dataset: a hash of its content that does not depend on Parquet's compression or chunks."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.checks import LABEL_DAYS
from training.data.ragged import Ragged
from training.data.split import Split

ROWS_PER_HASH_UPDATE = 65_536


def fingerprint(label_table: Any, splits: Mapping[Any, Split], exposures: Any = None) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of all columns of the labels, splits and exposures, in order.

    Weights, days and exposures count only if the dataset has them.
    """
    digest = hashlib.sha256()
    for name in label_table.column_names:
        is_day = name in LABEL_DAYS and pa.types.is_date32(label_table[name].type)  # not an attribute
        hash_one = _hash_flat if is_day else _hash_column
        hash_one(digest, f"labels.{name}", label_table[name])
    for name, split in splits.items():
        _hash_column(digest, f"{name}.id", split.ids_column)
        _hash_column(digest, f"{name}.text", split.texts_column)
        _hash_lists(digest, f"{name}.labels", split.labels)
        _hash_lists(digest, f"{name}.exclude", split.exclude)
        for column, value_V in split.pair_values.items():
            digest.update(f"\0{name}.{column}:{len(value_V)}\0".encode())
            digest.update(value_V.astype("<f4" if column == "weights" else "<i8").tobytes())
    for name in exposures.column_names if exposures is not None else ():
        _hash_flat(digest, f"exposures.{name}", exposures[name])
    return digest.hexdigest()


def _hash_column(digest: "hashlib._Hash", name: str, column: Any) -> None:
    digest.update(f"\0{name}:{len(column)}\0".encode())
    for start in range(0, len(column), ROWS_PER_HASH_UPDATE):
        values = column.slice(start, ROWS_PER_HASH_UPDATE).to_pylist()
        digest.update(json.dumps(values, default=str).encode())


def _hash_lists(digest: "hashlib._Hash", name: str, lists: Ragged) -> None:
    digest.update(f"\0{name}:{len(lists)}\0".encode())
    digest.update(lists.offsets.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(lists.values, dtype="<i4").tobytes())


def _hash_flat(digest: "hashlib._Hash", name: str, column: Any) -> None:
    """Hash a column of texts, integers or dates as bytes, which is faster than JSON; null is −1."""
    digest.update(f"\0{name}:{len(column)}\0".encode())
    for start in range(0, len(column), ROWS_PER_HASH_UPDATE):
        part = column.slice(start, ROWS_PER_HASH_UPDATE).combine_chunks()
        if pa.types.is_large_string(part.type):
            digest.update(np.asarray(pc.binary_length(part)).astype("<i8").tobytes())
            digest.update("".join(part.to_pylist()).encode())
        else:
            whole = part.cast(pa.int32()) if pa.types.is_date32(part.type) else part
            digest.update(np.asarray(pc.fill_null(whole, -1)).astype("<i8").tobytes())
