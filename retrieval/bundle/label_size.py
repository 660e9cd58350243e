"""Measure and limit the size of labels as JSON, since every answer contains the complete labels.

Suffix: L labels (or rows of a column).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic_core import to_json

from retrieval.errors import BadInput

MAX_LABEL_BYTES = 32_768  # of one label's id, text and attributes as JSON
ESCAPED = 6  # bytes of JSON that one byte of text may need
SCALAR_BYTES = 24  # of a number, a date or a missing value, rounded up
PUNCTUATION = 4  # quotes, colon and comma around a value


def label_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Return the approximate bytes of each label as JSON [L]; text that must be escaped can take six times as many."""
    total_L = np.zeros(table.num_rows, np.int64)
    for name in table.column_names:
        chunks = [_value_bytes(chunk) for chunk in table.column(name).chunks]
        if chunks:
            total_L += np.concatenate(chunks) + len(name.encode()) + PUNCTUATION
    return total_L


def check_label_size(table: pa.Table) -> None:
    """Check that no label is too large for an answer. Raises BadInput that names the largest one."""
    about_L = label_bytes(table)
    rows = np.flatnonzero(about_L > MAX_LABEL_BYTES // ESCAPED)
    for row in rows[np.argsort(-about_L[rows], kind="stable")].tolist():
        label = table.slice(row, 1).to_pylist()[0]
        size = len(to_json(label, inf_nan_mode="null", fallback=str))
        if size > MAX_LABEL_BYTES:
            attribute = max((name for name in label if name != "id"), key=lambda name: len(str(label[name])))
            raise BadInput(
                f"label {_short(label['id'])!r} has {size:,} bytes as JSON, most of them in {attribute!r}; the limit "
                f"is {MAX_LABEL_BYTES:,}, since every answer contains the complete labels. Shorten it or leave the "
                "attribute out."
            )


def _value_bytes(column: pa.Array) -> NDArray[np.int64]:
    """Return the approximate bytes of each value of a column as JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _value_bytes(column.dictionary_decode())
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(is_(kind) for is_ in texts):
        return _numbers(pc.binary_length(column).fill_null(SCALAR_BYTES))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        parents = _numbers(pc.list_parent_indices(column))
        sizes = np.bincount(parents, _value_bytes(column.flatten()) + PUNCTUATION, minlength=len(column))
        return sizes.astype(np.int64) + PUNCTUATION
    if pa.types.is_string_view(kind):
        return _value_bytes(column.cast(pa.large_string()))
    if pa.types.is_nested(kind):
        return np.array([len(to_json(value, fallback=str)) for value in column.to_pylist()], np.int64)
    return np.full(len(column), SCALAR_BYTES, np.int64)


def _numbers(column: pa.Array) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
