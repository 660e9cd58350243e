"""Parse the split column of a source."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.tables.columns import Fast, Parser
from retrieval.tables.values import BadRow, preview

SPLIT_CODES = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}


@dataclass(frozen=True)
class SplitParser(Parser):
    """The name of a split, as its code: 0 train, 1 validation, 2 test."""

    type: ClassVar[Any] = pa.int8()

    def _fast(self, column: Any) -> Fast | None:
        if not pa.types.is_large_string(column.type):
            return None
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        place = pc.index_in(texts, value_set=pa.array(list(SPLIT_CODES), pa.large_string()))
        codes = pa.array(list(SPLIT_CODES.values()), pa.int8()).take(place)
        return codes, codes.is_valid().to_numpy(zero_copy_only=False)

    def _scalar(self, value: Any, name: str) -> int:
        code = SPLIT_CODES.get(value.strip().lower()) if isinstance(value, str) else None
        if code is None:
            raise BadRow(f"split is {preview(value)}. Write train, validation or test.")
        return code


class SplitForm:
    """Whether rows have a split: as the first row."""

    def __init__(self) -> None:
        self._has_split: bool | None = None

    def differing(self, split: Any) -> tuple[npt.NDArray[np.bool_], str]:
        """Return the rows of an Arrow column that differ from the first row, and the message about them."""
        if self._has_split is None and len(split):
            self._has_split = split[0].is_valid
        differs = pc.is_null(split) if self._has_split else pc.is_valid(split)
        this, first = ("no", "a") if self._has_split else ("a", "no")
        message = f"the row has {this} split, but the first row has {first} split. Give all rows a split, or none."
        return np.asarray(differs), message
