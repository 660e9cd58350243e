"""Parse columns: a vectorised rule accepts nearly all values, and the functions of values.py parse the others.

Suffix: N rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.query_text import VISIBLE_PATTERN
from retrieval.tables.arrow_types import attribute_array, is_plain, python_values, simplified
from retrieval.tables.values import (
    MAX_COUNT,
    BadRow,
    Missing,
    checked_attribute,
    parse_count,
    parse_day,
    parse_id,
    parse_labels,
    parse_list_cell,
    parse_number,
    parse_text,
)

_SPACE = r"\x09-\x0d\x1c-\x20\x{85}\pZ"  # as in str.split
_ASCII_WORDS = "^[!-~]+(?: [!-~]+)*$"
_WORDS = f"^[^{_SPACE}]+(?: [^{_SPACE}]+)*$"
_NUMBER = r"^-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$"
_DATE_TIME = r"^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?$"

Fast = tuple[Any, NDArray[np.bool_]]  # the parsed column, and the rows that the rule accepts
Values = Any  # an Arrow array, or a list of Python values


@dataclass(frozen=True)
class Parser(ABC):
    """Parses one column to the Arrow type `type`. `required`: a null is a bad row."""

    required: bool = field(default=True, kw_only=True)

    @property
    def type(self) -> Any:
        """Return the Arrow type of the parsed column."""
        return pa.large_string()

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return is_plain(kind)

    @abstractmethod
    def fast(self, column: Any) -> Fast | None:
        """Parse an Arrow column without nulls by the vectorised rule; None if it does not apply to the type."""

    @abstractmethod
    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""

    def parse(self, values: Values, name: str) -> tuple[Any, dict[int, str]]:
        """Return the parsed column, null in bad rows, and the message of each bad row by its number."""
        column = simplified(values)
        fast = self.fast(column) if isinstance(column, pa.Array) else None
        if fast is None:
            return self._parse_scalars(column, np.arange(len(column)), name)
        parsed, accepted_N = fast
        if not self.required:
            accepted_N = accepted_N | column.is_null().to_numpy(zero_copy_only=False)
        if accepted_N.all():
            return parsed, {}
        rest = np.flatnonzero(~accepted_N)
        others, messages = self._parse_scalars(column.take(pa.array(rest)), rest, name)
        source_N = np.arange(len(column))
        source_N[rest] = len(column) + np.arange(len(rest))
        return pa.concat_arrays([parsed, others.cast(parsed.type)]).take(pa.array(source_N)), messages

    def _parse_scalars(self, values: Values, rows_N: NDArray[np.int64], name: str) -> tuple[Any, dict[int, str]]:
        parsed: list[Any] = []
        messages: dict[int, str] = {}
        for row, value in zip(rows_N.tolist(), python_values(values), strict=True):
            try:
                is_null = value is None or isinstance(value, Missing)
                if self.required and isinstance(value, Missing):
                    value.refuse(name)
                parsed.append(None if is_null and not self.required else self.scalar(value, name))
            except BadRow as bad:
                parsed.append(None)
                messages[row] = str(bad)
        return self.collect(parsed, name), messages

    def collect(self, parsed: list[Any], name: str) -> Any:
        """Return parsed values as a column."""
        return pa.array(parsed, self.type)


@dataclass(frozen=True)
class Text(Parser):
    """Text with single spaces, of at most `limit` characters, with a visible character; see `parse_text`."""

    limit: int = 1_000_000

    def fast(self, column: Any) -> Fast | None:
        """Accept text that needs no change."""
        if not pa.types.is_large_string(column.type):
            return None
        return column, _is_clean(column, self.limit)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return parse_text(value, name, self.limit)


@dataclass(frozen=True)
class Identifier(Text):
    """An id, from text or an integer; see `parse_id`."""

    def fast(self, column: Any) -> Fast | None:
        """Accept text that needs no change, and integers."""
        if pa.types.is_integer(column.type):
            return column.cast(pa.large_string()), column.is_valid().to_numpy(zero_copy_only=False)
        return super().fast(column)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return parse_id(value, name, self.limit)


@dataclass(frozen=True)
class TextList(Text):
    """A list of texts. `allow_single`: a value that is no list is a list of one."""

    allow_single: bool = field(default=False, kw_only=True)

    @property
    def type(self) -> Any:
        """Return the Arrow type of the parsed column."""
        return pa.large_list(pa.large_string())

    @property
    def _items(self) -> Text:
        return Text(limit=self.limit)

    def fast(self, column: Any) -> Fast | None:
        """Accept lists whose items need no change."""
        if not pa.types.is_large_list(column.type):
            return None
        fast = self._items.fast(simplified(column.flatten()))
        if fast is None:
            return None
        items, accepted_V = fast
        lengths_N = np.nan_to_num(pc.list_value_length(column).to_numpy(zero_copy_only=False)).astype(np.int64)
        offsets_N = np.concatenate([[0], np.cumsum(lengths_N)])
        bad_V = np.concatenate([[0], np.cumsum(~accepted_V)])
        valid_N = column.is_valid().to_numpy(zero_copy_only=False)
        accepted_N = (bad_V[offsets_N[1:]] == bad_V[offsets_N[:-1]]) & valid_N
        return pa.LargeListArray.from_arrays(pa.array(offsets_N), items, mask=pa.array(~valid_N)), accepted_N

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        items = parse_list_cell(value)
        if self.allow_single and not isinstance(items, list):
            return [self._items.scalar(items, name)]
        return parse_labels(items, name, self._items.scalar)


@dataclass(frozen=True)
class IdentifierList(TextList):
    """A list of ids. `allow_single`: a value that is no list is a list of one."""

    @property
    def _items(self) -> Text:
        return Identifier(limit=self.limit)


@dataclass(frozen=True)
class Count(Parser):
    """An integer of at least 0; see `parse_count`."""

    @property
    def type(self) -> Any:
        """Return the Arrow type of the parsed column."""
        return pa.int64()

    def fast(self, column: Any) -> Fast | None:
        """Accept digits and integers."""
        if pa.types.is_large_string(column.type):
            digits = pc.and_(pc.ascii_is_decimal(column), pc.less_equal(pc.binary_length(column), 12))
            column = pc.if_else(digits, column, None).cast(pa.int64())
        elif not pa.types.is_integer(column.type):
            return None
        accepted = pc.fill_null(pc.and_(pc.greater_equal(column, 0), pc.less(column, MAX_COUNT)), False)
        return pc.if_else(accepted, column, None).cast(pa.int64()), accepted.to_numpy(zero_copy_only=False)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return parse_count(value, name)


@dataclass(frozen=True)
class Number(Parser):
    """A finite number."""

    @property
    def type(self) -> Any:
        """Return the Arrow type of the parsed column."""
        return pa.float64()

    def fast(self, column: Any) -> Fast | None:
        """Accept decimal notation and finite numbers."""
        if pa.types.is_large_string(column.type):
            column = pc.if_else(pc.match_substring_regex(column, _NUMBER), column, None)
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return None
        column = column.cast(pa.float64(), safe=False)
        return column, pc.fill_null(pc.is_finite(column), False).to_numpy(zero_copy_only=False)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return parse_number(value, name)


@dataclass(frozen=True)
class Day(Parser):
    """A date, from a date, a time stamp, or text; see `parse_day`. The day of a time stamp is that of its time zone."""

    @property
    def type(self) -> Any:
        """Return the Arrow type of the parsed column."""
        return pa.date32()

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return is_plain(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)

    def fast(self, column: Any) -> Fast | None:
        """Accept dates, and parse each distinct text once."""
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            days = column.cast(pa.date32(), safe=False)
            return days, days.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_integer(column.type):
            column = column.cast(pa.large_string())
        if not pa.types.is_large_string(column.type):
            return None
        is_time = pc.match_substring_regex(column, _DATE_TIME)
        texts = pc.if_else(is_time, pc.utf8_slice_codeunits(column, 0, 10), column).dictionary_encode()
        days = [_day_or_none(text) for text in texts.dictionary.to_pylist()]
        column = pa.array(days, pa.date32()).take(texts.indices)
        return column, column.is_valid().to_numpy(zero_copy_only=False)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return parse_day(value, name)


@dataclass(frozen=True)
class Attribute(Parser):
    """A value of any type, unchanged. Batches of one column may have different Arrow types."""

    required: bool = field(default=False, kw_only=True)

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return True

    def parse(self, values: Values, name: str) -> tuple[Any, dict[int, str]]:
        """Return Arrow columns as they are; Python values are checked."""
        if isinstance(values, pa.Array):
            is_view = pa.types.is_string_view(values.type)  # Arrow cannot filter views
            return values.cast(pa.large_string()) if is_view else values, {}
        return super().parse(values, name)

    def fast(self, column: Any) -> Fast | None:
        """Accept all values."""
        return column, np.ones(len(column), np.bool_)

    def scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""
        return checked_attribute(value, name)

    def collect(self, parsed: list[Any], name: str) -> Any:
        """Return parsed values as a column of the type that fits them. Raises TableError if there is none."""
        return attribute_array(parsed, name)


def _is_clean(column: Any, limit: int) -> NDArray[np.bool_]:
    """Return the rows with text that `parse_text` would not change or refuse, which may miss rows with non-Latin."""
    clean = pc.match_substring_regex(column, _ASCII_WORDS)
    clean_N: NDArray[np.bool_] = pc.fill_null(clean, False).to_numpy(zero_copy_only=False)
    rest = np.flatnonzero(~clean_N)
    if len(rest):
        others = column.take(pa.array(rest))
        words = pc.and_(pc.match_substring_regex(others, _WORDS), pc.match_substring_regex(others, VISIBLE_PATTERN))
        clean_N = clean_N.copy()
        clean_N[rest] = pc.fill_null(words, False).to_numpy(zero_copy_only=False)
    short = pc.fill_null(pc.less_equal(pc.binary_length(column), limit), False)
    return clean_N & np.asarray(short.to_numpy(zero_copy_only=False), np.bool_)


def _day_or_none(text: str | None) -> Any:
    try:
        return None if text is None else parse_day(text, "")
    except BadRow:
        return None
