"""Check the tables of a prepared dataset, when they are written and when they are read.

Each error names the file, the row, the value and the fix. Row numbers count from 0, as in `labels` and `exclude`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError
from retrieval.query_text import VISIBLE_PATTERN
from training.data.ragged import ROWS_PER_STEP, Ragged

SPLIT_SCHEMA = pa.schema(
    # 64-bit offsets: the texts of a split may exceed 2 GB
    [
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("labels", pa.list_(pa.int32())),
        ("exclude", pa.list_(pa.int32())),
    ]
)
# Optional columns of a split: lists parallel to `labels`.
PAIR_TYPES = {"weights": pa.float32(), "first_day": pa.date32(), "last_day": pa.date32()}
LABEL_DAYS = ("first_seen", "last_seen")  # optional columns of the label table, if they are dates


def check_label_table(table: Any, file: str) -> Any:
    """Return the label table with `id` and `text` as strings first. Raises DatasetError for the first invalid row."""
    strings = {name: string_column(table, name, file) for name in ("id", "text")}
    if table.num_rows == 0:
        raise DatasetError(f"{file} has no rows. A dataset needs at least one label.")
    _require_unique_ids(strings["id"], file)
    _require_visible_text(strings["text"], "text", file)
    attributes = {name: table[name] for name in table.column_names if name not in strings}
    if len(attributes) + len(strings) != table.num_columns:
        raise DatasetError(f"{file} has two columns with the same name: {', '.join(table.column_names)}. Rename one.")
    return pa.table({**strings, **attributes})


def label_day_columns(table: Any) -> list[str]:
    """Return the names of the columns with the days of labels. Only dates are; other types are attributes."""
    return [field.name for field in table.schema if field.name in LABEL_DAYS and field.type == pa.date32()]


def check_split_table(table: Any, file: str, n_labels: int) -> Any:
    """Return the columns of a split in the types of SPLIT_SCHEMA and PAIR_TYPES. Raises DatasetError for a bad row."""
    ids, texts = string_column(table, "id", file), string_column(table, "text", file)
    _require_unique_ids(ids, file)
    _require_visible_text(texts, "text", file)
    lists = [_label_rows(table, name, file, n_labels) for name in ("labels", "exclude")]
    checked = pa.table([ids, texts, *lists], schema=SPLIT_SCHEMA)
    for name in PAIR_TYPES:
        if name in table.column_names:
            checked = checked.append_column(name, _pair_values(table, name, file))
    return checked


def require_positives(labels: Ragged, file: str) -> None:
    """Raise DatasetError for the first row without a true label: sampling needs at least one positive per query."""
    bare = np.flatnonzero(labels.lengths == 0)
    if len(bare):
        raise DatasetError(
            f"{file} row {bare[0]}: labels is empty after the excluded labels are removed. "
            "Remove the row or add a label: a training row needs a positive."
        )


def string_column(table: Any, name: str, file: str) -> Any:
    """Return a column as Arrow strings. Raises DatasetError for nulls and for other types."""
    column = _column(table, name, file)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        # numbers could be cast, but their text could differ from the original id
        raise DatasetError(f"{file}: column {name} is {kind}, not text. Store it as strings.")
    return column.cast(pa.large_string())


def _column(table: Any, name: str, file: str) -> Any:
    if table.column_names.count(name) != 1:
        raise DatasetError(f"{file} needs one column {name}; it has {', '.join(table.column_names) or 'none'}.")
    column = table[name]
    if column.null_count:
        row = _first(pc.is_null(column))
        raise DatasetError(f"{file} row {row}: {name} is null. Remove the row or add the value.")
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
        raise DatasetError(f"{file} row {row}: {name} contains a null. Remove it.")
    values = np.asarray(flat)
    if values.dtype != np.int32:
        values = values.astype(np.int64)
    outside = np.flatnonzero((values < 0) | (values >= n_labels))
    if len(outside):
        row = pc.list_parent_indices(column)[int(outside[0])]
        raise DatasetError(
            f"{file} row {row}: {name} contains label row {values[outside[0]]}, but labels.parquet has "
            f"rows 0 to {n_labels - 1}. Remove the number or add the label."
        )
    _refuse_repeats(Ragged.from_lengths(values, np.asarray(pc.list_value_length(column))), name, file, n_labels)
    return column.cast(pa.list_(pa.int32()))


def _pair_values(table: Any, name: str, file: str) -> Any:
    """Return a column of lists that are parallel to `labels`, in the type of PAIR_TYPES."""
    column, kind = _column(table, name, file), PAIR_TYPES[name]
    values = column.type.value_type if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else None
    number = name == "weights" and values is not None and (pa.types.is_floating(values) or pa.types.is_integer(values))
    if values is None or not (number or values == kind or pa.types.is_null(values)):
        raise DatasetError(f"{file}: column {name} is {column.type}. Store it as list<{kind}>.")
    lengths, expected = (np.asarray(pc.list_value_length(lists)) for lists in (column, table["labels"]))
    if (different := np.flatnonzero(lengths != expected)).size:
        row = different[0]
        raise DatasetError(
            f"{file} row {row}: {name} has {lengths[row]} values, but labels has {expected[row]}. "
            "Write one value per label."
        )
    flat = pc.list_flatten(column)
    bad = pc.is_null(flat)
    if number:
        weight_V = np.asarray(flat).astype(np.float32)  # NaN where the value is null
        bad = pa.array(~(np.isfinite(weight_V) & (weight_V > 0)))
    if pc.any(bad).as_py():
        place = _first(bad)
        row, fix = pc.list_parent_indices(column)[place], "a number above 0" if number else "a date"
        raise DatasetError(f"{file} row {row}: {name} contains {flat[place]}, not {fix}. Write {fix} per label.")
    return column.cast(pa.list_(kind), safe=False)


def _refuse_repeats(lists: Ragged, name: str, file: str, n_labels: int) -> None:
    for start in range(0, len(lists), ROWS_PER_STEP):
        keys = lists[start : start + ROWS_PER_STEP].keys(n_labels)
        repeat = first_repeat(keys)
        if repeat is not None:
            row, label = divmod(int(keys[repeat]), n_labels)
            raise DatasetError(f"{file} row {start + row}: {name} contains label row {label} twice. Remove one.")


def _require_unique_ids(ids: Any, file: str) -> None:
    chunks = ids.dictionary_encode().chunks  # all chunks share one dictionary
    codes = np.concatenate([np.empty(0, np.int32), *(np.asarray(chunk.indices) for chunk in chunks)])
    repeat = first_repeat(codes)
    if repeat is not None:
        first = int(np.flatnonzero(codes == codes[repeat])[0])
        raise DatasetError(
            f"{file} row {repeat}: id {ids[repeat].as_py()!r} is the id of row {first} too. Give each row its own id."
        )
    _require_visible_text(ids, "id", file)


def _require_visible_text(column: Any, name: str, file: str) -> None:
    blank = pc.invert(pc.match_substring_regex(column, VISIBLE_PATTERN))
    if pc.any(blank).as_py():
        raise DatasetError(f"{file} row {_first(blank)}: {name} is empty. Remove the row or add {_noun(name)}.")


def _noun(name: str) -> str:
    return "an id" if name == "id" else "text"


def _first(flags: Any) -> int:
    return int(pc.index(flags, True).as_py())


def first_repeat(codes_N: npt.NDArray[np.integer[Any]]) -> int | None:
    """Return the first position whose value occurred before; None if all N values differ."""
    sorted_N = np.sort(codes_N)
    if not np.any(sorted_N[1:] == sorted_N[:-1]):
        return None
    order_N = np.argsort(codes_N, kind="stable")
    same = np.flatnonzero(codes_N[order_N][1:] == codes_N[order_N][:-1])
    return int(order_N[same + 1].min())
