"""Convert columns of all Arrow types to a few: large strings, numbers, large lists of these, and times."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.errors import TableError

_TEXT = pa.large_string()


def is_plain(kind: Any) -> bool:
    """Return whether a type holds text, numbers or booleans, or lists of these."""
    if pa.types.is_dictionary(kind) or is_list(kind):
        return is_plain(kind.value_type)
    types = pa.types
    checks = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal)
    return any(check(kind) for check in checks) or _is_text(kind) or _is_bytes(kind)


def is_list(kind: Any) -> bool:
    """Return whether a type holds lists."""
    types = pa.types
    checks = (
        types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def simplified(values: Any) -> Any:
    """Return text as `large_string` and lists as `large_list`, without dictionaries and views.

    Returns Python values for bytes that are not UTF-8, which become lone surrogates. Lists of Python values become an
    Arrow column if all are text or null.
    """
    if isinstance(values, list):
        try:
            return pa.array(values, pa.large_string())
        except (pa.ArrowException, TypeError, UnicodeEncodeError):
            return values
    kind = _simple_type(values.type)
    try:
        column = values if kind == values.type else values.cast(kind)
        if _is_text(values.type) or is_list(values.type) or pa.types.is_dictionary(values.type):
            column.validate(full=True)  # a Parquet file may declare bytes as UTF-8 that are not
        return column
    except (pa.ArrowException, UnicodeDecodeError):
        return python_values(values)


def python_values(values: Any) -> list[Any]:
    """Return Python values; bytes become text, with lone surrogates for bytes that are not UTF-8."""
    if isinstance(values, list):
        return values
    try:
        listed = values.to_pylist()
    except UnicodeDecodeError:
        listed = values.cast(_simple_type(values.type, pa.large_binary())).to_pylist()
    return [_decoded(value) for value in listed]


def to_mask(column: Any) -> NDArray[np.bool_]:
    """Return an Arrow column of booleans as an array; False where it is null."""
    return np.array(column.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)


def attribute_array(values: list[Any], name: str) -> Any:
    """Return Python values as an Arrow column. Raises TableError if they have no common type."""
    try:
        return pa.array(values)
    except OverflowError:  # 2^63 or more: try unsigned integers
        try:
            return pa.array(values, pa.uint64())
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise TableError(
                f"column {name!r} contains integers that do not fit in one type ({error}). Write text."
            ) from error
    except UnicodeEncodeError as error:  # values were checked before, so it is a key of an object
        raise TableError(f"column {name!r} contains an object with a key that is not UTF-8. Rename the key.") from error
    except (pa.ArrowException, TypeError) as error:
        raise TableError(f"column {name!r} contains values of different types ({error}). Use one type.") from error


def _simple_type(kind: Any, text: Any = _TEXT) -> Any:
    if pa.types.is_dictionary(kind):
        return _simple_type(kind.value_type, text)
    if is_list(kind):
        return pa.large_list(_simple_type(kind.value_type, text))
    return text if _is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind) else kind


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
