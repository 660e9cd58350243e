"""The checks that every table of a prepared dataset passes, whoever wrote it.

Each error names file, row, value and way out. Row numbers count from 0, as the label rows in `labels` and `exclude` do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError
from retrieval.query_text import VISIBLE_PATTERN
from training.data.ragged import ROWS_AT_ONCE, Ragged

SPLIT_SCHEMA = pa.schema(
    # 64-bit offsets: all texts of a split may be more than 2 GB
    [
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("labels", pa.list_(pa.int32())),
        ("exclude", pa.list_(pa.int32())),
    ]
)


def label_table(table: Any, file: str) -> Any:
    """The label table with `id` and `text` as plain strings first; DatasetError for the first bad row."""
    strings = {name: string_column(table, name, file) for name in ("id", "text")}
    if table.num_rows == 0:
        raise DatasetError(f"{file} has no rows. A dataset needs at least one label.")
    _ids_unique(strings["id"], file)
    _not_blank(strings["text"], "text", file)
    attributes = {name: table[name] for name in table.column_names if name not in strings}
    if len(attributes) + len(strings) != table.num_columns:
        raise DatasetError(f"{file} has two columns of one name: {', '.join(table.column_names)}. Rename one.")
    return pa.table({**strings, **attributes})


def split_table(table: Any, file: str, n_labels: int) -> Any:
    """The split's four columns in their plain types (SPLIT_SCHEMA); DatasetError for the first bad row."""
    ids, texts = string_column(table, "id", file), string_column(table, "text", file)
    _ids_unique(ids, file)
    _not_blank(texts, "text", file)
    lists = [_label_rows(table, name, file, n_labels) for name in ("labels", "exclude")]
    return pa.table([ids, texts, *lists], schema=SPLIT_SCHEMA)


def every_row_has_a_positive(labels: Ragged, file: str) -> None:
    """DatasetError for the first row without a true label: it would teach nothing, and sampling needs one."""
    bare = np.flatnonzero(labels.lengths == 0)
    if len(bare):
        raise DatasetError(
            f"{file} row {bare[0]}: labels is empty once the excluded ones are taken out. "
            "Remove the row or give it a label: a training row needs a positive."
        )


def string_column(table: Any, name: str, file: str) -> Any:
    """A column without nulls as Arrow strings."""
    column = _column(table, name, file)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        # numbers would cast too, but an id that changes its spelling is no id any more
        raise DatasetError(f"{file}: column {name} is {kind}, not text. Store it as strings.")
    return column.cast(pa.large_string())


def _column(table: Any, name: str, file: str) -> Any:
    if table.column_names.count(name) != 1:
        raise DatasetError(f"{file} needs one column {name}; it has {', '.join(table.column_names) or 'none'}.")
    column = table[name]
    if column.null_count:
        row = _first(pc.is_null(column))
        raise DatasetError(f"{file} row {row}: {name} is null. Remove the row or fill it.")
    return column


def _label_rows(table: Any, name: str, file: str, n_labels: int) -> Any:
    column = _column(table, name, file)
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
        pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)
    ):
        raise DatasetError(f"{file}: column {name} is {kind}, not lists of row numbers. Store it as list<int32>.")
    flat = pc.list_flatten(column)
    if flat.null_count:
        row = pc.list_parent_indices(column)[_first(pc.is_null(flat))]
        raise DatasetError(f"{file} row {row}: {name} holds a null. Remove it.")
    values = np.asarray(flat)
    if values.dtype != np.int32:
        values = values.astype(np.int64)
    outside = np.flatnonzero((values < 0) | (values >= n_labels))
    if len(outside):
        row = pc.list_parent_indices(column)[int(outside[0])]
        raise DatasetError(
            f"{file} row {row}: {name} names label row {values[outside[0]]}, but labels.parquet has "
            f"rows 0 to {n_labels - 1}. Remove the number or add the label."
        )
    _no_repeats(Ragged.from_lengths(values, np.asarray(pc.list_value_length(column))), name, file, n_labels)
    return column.cast(pa.list_(pa.int32()))


def _no_repeats(lists: Ragged, name: str, file: str, n_labels: int) -> None:
    for start in range(0, len(lists), ROWS_AT_ONCE):
        keys = lists[start : start + ROWS_AT_ONCE].keys(n_labels)
        repeat = first_repeat(keys)
        if repeat is not None:
            row, label = divmod(int(keys[repeat]), n_labels)
            raise DatasetError(f"{file} row {start + row}: {name} names label row {label} twice. Remove one.")


def _ids_unique(ids: Any, file: str) -> None:
    chunks = ids.dictionary_encode().chunks  # all with one dictionary
    codes = np.concatenate([np.empty(0, np.int32), *(np.asarray(chunk.indices) for chunk in chunks)])
    repeat = first_repeat(codes)
    if repeat is not None:
        first = int(np.flatnonzero(codes == codes[repeat])[0])
        raise DatasetError(
            f"{file} row {repeat}: id {ids[repeat].as_py()!r} stands in row {first} too. Give each row its own id."
        )
    _not_blank(ids, "id", file)


def _not_blank(column: Any, name: str, file: str) -> None:
    blank = pc.invert(pc.match_substring_regex(column, VISIBLE_PATTERN))
    if pc.any(blank).as_py():
        raise DatasetError(f"{file} row {_first(blank)}: {name} is empty. Remove the row or give it {_noun(name)}.")


def _noun(name: str) -> str:
    return "an id" if name == "id" else "text"


def _first(flags: Any) -> int:
    return int(pc.index(flags, True).as_py())


def first_repeat(codes_N: npt.NDArray[np.integer[Any]]) -> int | None:
    """The first position whose value already stood before it; None where all N differ."""
    sorted_N = np.sort(codes_N)
    if not np.any(sorted_N[1:] == sorted_N[:-1]):
        return None
    order_N = np.argsort(codes_N, kind="stable")
    same = np.flatnonzero(codes_N[order_N][1:] == codes_N[order_N][:-1])
    return int(order_N[same + 1].min())
