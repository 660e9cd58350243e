"""Parse columns: a vectorised rule accepts nearly all values, and the functions of values.py parse the others.

Suffixes: N rows, V values of lists.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.query_text import VISIBLE_PATTERN
from retrieval.tables.arrow_types import attribute_array, is_plain, python_values, simplified, to_mask
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

Fast = tuple[Any, NDArray[np.bool_]]  # the parsed column, and the rows that the vectorised rule accepts


@dataclass(frozen=True)
class Parser(ABC):
    """Parses one column to the Arrow type `type`. `required`: a null is a bad row."""

    type: ClassVar[Any] = pa.large_string()
    required: bool = field(default=True, kw_only=True)

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return is_plain(kind)

    def parse(self, values: Any, name: str) -> tuple[Any, dict[int, str]]:
        """Parse an Arrow array or a list of Python values.

        Returns the parsed column, null in bad rows, and the message of each bad row by its number.
        """
        column = simplified(values)
        fast = self._fast(column) if isinstance(column, pa.Array) else None
        if fast is None:
            return self._parse_scalars(column, range(len(column)), name)
        parsed, accepted_N = fast
        if not self.required:
            accepted_N = accepted_N | to_mask(column.is_null())
        if accepted_N.all():
            return parsed, {}
        rest = np.flatnonzero(~accepted_N)
        others, messages = self._parse_scalars(column.take(pa.array(rest)), rest.tolist(), name)
        source_N = np.arange(len(column))
        source_N[rest] = len(column) + np.arange(len(rest))
        return pa.concat_arrays([parsed, others.cast(parsed.type)]).take(pa.array(source_N)), messages

    def _parse_scalars(self, values: Any, rows: Any, name: str) -> tuple[Any, dict[int, str]]:
        parsed: list[Any] = []
        messages: dict[int, str] = {}
        for row, value in zip(rows, python_values(values), strict=True):
            try:
                is_null = value is None or isinstance(value, Missing)
                if self.required and isinstance(value, Missing):
                    value.refuse(name)
                parsed.append(None if is_null and not self.required else self._scalar(value, name))
            except BadRow as bad:
                parsed.append(None)
                messages[row] = str(bad)
        return self._collect(parsed, name), messages

    def _fast(self, column: Any) -> Fast | None:
        """Apply the vectorised rule to a column; None if it has none for the column's type."""
        return None

    @abstractmethod
    def _scalar(self, value: Any, name: str) -> Any:
        """Parse one value. Raises BadRow."""

    def _collect(self, parsed: list[Any], name: str) -> Any:
        return pa.array(parsed, self.type)


@dataclass(frozen=True)
class Text(Parser):
    """Text with single spaces, of at most `limit` characters, with a visible character; see `parse_text`."""

    limit: int = 1_000_000

    def _fast(self, column: Any) -> Fast | None:
        return (column, _is_clean(column, self.limit)) if column.type == pa.large_string() else None

    def _scalar(self, value: Any, name: str) -> Any:
        return parse_text(value, name, self.limit)


@dataclass(frozen=True)
class Identifier(Text):
    """An id, from text or an integer; see `parse_id`."""

    def _fast(self, column: Any) -> Fast | None:
        if pa.types.is_integer(column.type):
            return column.cast(pa.large_string()), to_mask(column.is_valid())
        return super()._fast(column)

    def _scalar(self, value: Any, name: str) -> Any:
        return parse_id(value, name, self.limit)


@dataclass(frozen=True)
class TextList(Text):
    """A list of texts, or a cell with a JSON list. `allow_single`: another value is a list of one."""

    type: ClassVar[Any] = pa.large_list(pa.large_string())
    allow_single: bool = field(default=False, kw_only=True)

    @property
    def _items(self) -> Text:
        return Text(self.limit)

    def _fast(self, column: Any) -> Fast | None:
        is_list = pa.types.is_large_list(column.type)
        fast = self._items._fast(simplified(column.flatten())) if is_list else None
        if fast is None:
            return None
        items, accepted_V = fast
        lengths_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        offsets_N = np.concatenate([[0], np.cumsum(lengths_N)])
        bad_V = np.concatenate([[0], np.cumsum(~accepted_V)])
        accepted_N = (bad_V[offsets_N[1:]] == bad_V[offsets_N[:-1]]) & to_mask(column.is_valid())
        return pa.LargeListArray.from_arrays(pa.array(offsets_N), items, mask=column.is_null()), accepted_N

    def _scalar(self, value: Any, name: str) -> Any:
        items, parse = parse_list_cell(value), self._items._scalar
        if self.allow_single and not isinstance(items, list):
            return [parse(items, name)]
        return parse_labels(items, name, parse)


@dataclass(frozen=True)
class IdentifierList(TextList):
    """A list of ids; see `TextList`."""

    @property
    def _items(self) -> Text:
        return Identifier(self.limit)


@dataclass(frozen=True)
class Count(Parser):
    """An integer of at least 0; see `parse_count`."""

    type: ClassVar[Any] = pa.int64()

    def _fast(self, column: Any) -> Fast | None:
        if column.type == pa.large_string():
            digits = pc.and_(pc.ascii_is_decimal(column), pc.less_equal(pc.binary_length(column), 12))
            column = pc.if_else(digits, column, None).cast(pa.int64())
        elif not pa.types.is_integer(column.type):
            return None
        accepted = pc.and_(pc.greater_equal(column, 0), pc.less(column, MAX_COUNT))
        return pc.if_else(accepted, column, None).cast(pa.int64()), to_mask(accepted)

    def _scalar(self, value: Any, name: str) -> Any:
        return parse_count(value, name)


@dataclass(frozen=True)
class Number(Parser):
    """A finite number; see `parse_number`."""

    type: ClassVar[Any] = pa.float64()

    def _fast(self, column: Any) -> Fast | None:
        if column.type == pa.large_string():
            column = pc.if_else(pc.match_substring_regex(column, _NUMBER), column, None)
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return None
        column = column.cast(pa.float64(), safe=False)
        return column, to_mask(pc.is_finite(column))

    def _scalar(self, value: Any, name: str) -> Any:
        return parse_number(value, name)


@dataclass(frozen=True)
class Day(Parser):
    """A date, from a date, a time, or text; see `parse_day`."""

    type: ClassVar[Any] = pa.date32()

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return is_plain(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)

    def parse(self, values: Any, name: str) -> tuple[Any, dict[int, str]]:
        """Parse an Arrow array or a list of Python values, as `Parser.parse`."""
        if isinstance(values, pa.Array) and pa.types.is_temporal(values.type):
            values = values.cast(pa.date32(), safe=False)
            if not pc.all(pc.and_(pc.greater_equal(values, date.min), pc.less_equal(values, date.max))).as_py():
                values = values.cast(pa.large_string())  # Python has no dates beyond the year 9999
        return super().parse(values, name)

    def _fast(self, column: Any) -> Fast | None:
        if pa.types.is_date(column.type):
            return column, to_mask(column.is_valid())
        if pa.types.is_integer(column.type):
            column = column.cast(pa.large_string())
        if column.type != pa.large_string():
            return None
        is_time = pc.match_substring_regex(column, _DATE_TIME)
        texts = pc.if_else(is_time, pc.utf8_slice_codeunits(column, 0, 10), column).dictionary_encode()
        days = pa.array(map(_day_or_none, texts.dictionary.to_pylist()), pa.date32()).take(texts.indices)
        return days, to_mask(days.is_valid())

    def _scalar(self, value: Any, name: str) -> Any:
        return parse_day(value, name)


@dataclass(frozen=True)
class Attribute(Parser):
    """A value of any type, unchanged. Batches of one column may have different Arrow types."""

    required: bool = field(default=False, kw_only=True)

    def reads(self, kind: Any) -> bool:
        """Return whether columns of this Arrow type can be read."""
        return True

    def parse(self, values: Any, name: str) -> tuple[Any, dict[int, str]]:
        """Return an Arrow column as it is, and other values as a column of the type that fits them.

        Raises TableError if they have no common type.
        """
        if not isinstance(values, pa.Array):
            return self._parse_scalars(values, range(len(values)), name)
        if pa.types.is_string_view(values.type):  # Arrow cannot filter views
            values = values.cast(pa.large_string())
        return (pa.nulls(len(values)) if values.null_count == len(values) else values), {}

    def _scalar(self, value: Any, name: str) -> Any:
        return checked_attribute(value, name)

    def _collect(self, parsed: list[Any], name: str) -> Any:
        return attribute_array(parsed, name)


def _is_clean(column: Any, limit: int) -> NDArray[np.bool_]:
    """Return the rows with text that `parse_text` accepts without a change; some may be missing."""
    clean_N = to_mask(pc.match_substring_regex(column, _ASCII_WORDS))
    rest = np.flatnonzero(~clean_N)
    if len(rest):
        others = column.take(pa.array(rest))
        words = pc.and_(pc.match_substring_regex(others, _WORDS), pc.match_substring_regex(others, VISIBLE_PATTERN))
        clean_N[rest] = to_mask(words)
    return clean_N & to_mask(pc.less_equal(pc.binary_length(column), limit))


def _day_or_none(text: str | None) -> Any:
    try:
        return None if text is None else parse_day(text, "")
    except BadRow:
        return None
