"""Convert attribute columns of the label table to types that JSON has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError

OUT_OF_RANGE = "<value out of range"  # Arrow's text for a date or time outside the calendar
MAX_DEPTH = 32  # lists and objects inside each other; Parquet and Arrow files refuse about 50


def attribute_column(path: Path, name: str, column: Any) -> Any:
    """Return one attribute as an Arrow column of a type that JSON has: texts, numbers, truth values, lists, objects.

    Dates, times, decimals and durations become text, NaN and infinity null, maps lists of objects with `key` and
    `value`. Raises DatasetError for a name that is not UTF-8, for bytes, empty objects and deep nesting.
    """
    where = f"{path}: column {name!r}"
    if not _is_utf8(name):
        raise DatasetError(f"{where} has a name that is not UTF-8. Rename it.")
    _refuse_unwritable(where, column.type)
    try:
        column = _as_json(column)
        column.validate(full=True)  # a Parquet file may declare bytes as UTF-8 that are not
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"{where} of type {column.type} cannot be read ({error}). Write it as text.") from error
    if _contains(column.type, _is_bytes):
        raise DatasetError(f"{where} contains bytes, which JSON cannot represent. Leave it out or write text.")
    return column


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unwritable(where: str, kind: Any) -> None:
    """Raise DatasetError for a type that Parquet cannot store, or that Arrow cannot convert."""
    if _depth(kind) > MAX_DEPTH:
        raise DatasetError(f"{where} contains lists or objects nested more than {MAX_DEPTH} deep. Write them as text.")
    if _contains(kind, lambda one: pa.types.is_struct(one) and one.num_fields == 0):
        raise DatasetError(f"{where} contains only empty objects. Leave it out.")
    if _contains(kind, lambda one: pa.types.is_list_view(one) or pa.types.is_large_list_view(one)):
        # Arrow 26 casts them to lists with too few offsets.
        raise DatasetError(f"{where} of type {kind} contains list views. Write lists.")


def _depth(kind: Any) -> int:
    return max((1 + _depth(kind.field(index).type) for index in range(kind.num_fields)), default=0)


def _as_json(column: Any) -> Any:
    kind = column.type
    json_type = _json_type(kind)
    if json_type != kind:
        column = column.cast(json_type)
    if pa.types.is_temporal(kind) and pc.any(pc.starts_with(column, OUT_OF_RANGE)).as_py():
        raise pa.ArrowInvalid("a value is out of the calendar's range")
    if not _contains(json_type, pa.types.is_floating):
        return column
    return pa.chunked_array([_finite(chunk) for chunk in column.chunks], json_type)


def _finite(array: Any) -> Any:
    """Return an array with NaN and infinity replaced by null, in lists and objects too: JSON has neither."""
    kind = array.type
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, kind))
    if pa.types.is_list(kind):
        array = pa.concat_arrays([array])  # a copy, since a slice accepts no mask
        return pa.ListArray.from_arrays(array.offsets, _finite(array.values), type=kind, mask=array.is_null())
    if pa.types.is_struct(kind):
        children = [_finite(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    return array


def _json_type(kind: Any) -> Any:
    """Return the type to cast a column of type `kind` to."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _json_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _json_type(kind.value_type)
    if types.is_float16(kind):
        return pa.float32()
    texts = (types.is_string, types.is_string_view, types.is_temporal, types.is_decimal)
    if any(check(kind) for check in texts):
        return pa.large_string()
    if types.is_map(kind):
        return pa.list_(pa.struct([("key", _json_type(kind.key_type)), ("value", _json_type(kind.item_type))]))
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if any(check(kind) for check in lists):
        return pa.list_(_json_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _json_type(field.type)) for field in kind])
    return kind


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def _contains(kind: Any, check: Callable[[Any], bool]) -> bool:
    """Return whether a type, or a type inside it, passes the check."""
    return check(kind) or any(_contains(kind.field(index).type, check) for index in range(kind.num_fields))
