"""Read CSV and TSV. The separator is detected from the header; an unmatched quote invalidates only its line.

Arrow reads the lines without quotes, Python's csv module the others.

Suffix: L lines of a block.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from retrieval.errors import BadInput, TableError
from retrieval.tables.arrow_types import to_mask
from retrieval.tables.batches import Chunk, Part
from retrieval.tables.files import TableFile, ending
from retrieval.tables.lines import MAX_LINE, Block, LineBlocks
from retrieval.tables.opening import ReadingProgress, opened
from retrieval.tables.quoted import QuotedRow, QuotedRows
from retrieval.tables.values import preview

SEPARATORS = (",", "\t", ";", "|", "\x01")  # the last one is Hive's
SAMPLE_LINES, SAMPLE_BYTES = 50, 2**20
NAMES = {"\t": "tab", "\x01": "character 1"}

Quoting = Literal["auto", "csv", "none"]


@dataclass(frozen=True)
class Layout:
    """Separator and quoting of CSV and TSV; None and `auto`: detected from the file."""

    separator: str | None = None
    quoting: Quoting = "auto"

    @classmethod
    def of(cls, separator: str | None, quoting: Quoting) -> "Layout":
        """Build from a command's options; `\\t` and `tab` are a tab. Raises BadInput for an invalid separator."""
        named = {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)
        if named is not None and (len(named) != 1 or named in '"\r\n'):
            raise BadInput(f"--separator is {separator!r}. Give one character other than a quote, or tab.")
        return cls(named, quoting)


class DelimitedPart(Part):
    """One CSV or TSV file with its header. An empty file has no columns and no rows."""

    def __init__(self, file: TableFile, layout: Layout) -> None:
        """Read the header. Raises TableError if there is none or its quotes do not match."""
        super().__init__(file)
        csv.field_size_limit(MAX_LINE)
        self._usual = "\t" if ending(file.name) == ".tsv" else ","
        sample, encoding = _sample(file)
        marked = _marked_separator(sample)
        lines = [line for line in sample[1 if marked else 0 :] if line.strip()]
        self.separator = layout.separator or marked or _guess(lines, self._usual)
        self.quoted = layout.quoting == "csv" or (layout.quoting == "auto" and self._uses_quotes(lines))
        first = sample.index(lines[0]) if lines else 0
        header, header_lines = self._header(sample[first:])
        self._rows_begin = first + header_lines  # the number of lines before the rows
        self._cells = len(header)  # in the header line; more than the names if it ends in separators
        self.stored_names = header
        while self.stored_names and not self.stored_names[-1]:
            self.stored_names = self.stored_names[:-1]
        if lines and not self.stored_names:
            raise TableError(f"{file.location} has no header line. Name the columns in the first line.")
        cell, end = f"[^\\x{{{ord(self.separator):x}}}]", f"\\x{{{ord(self.separator):x}}}"
        value = f'(?:"(?:[^"]|"")*"|(?:[^"{end}]{cell}*)?)'
        self._regular = f"^{value}(?:{end}{value})*[\\r\\n]*$"
        self._quoted_cell = f'(?:^|{end})"{cell}*"(?:{end}|[\r\n]|$)'
        self._quoted_rows = QuotedRows(self.separator, len(self.stored_names), layout.quoting == "csv")
        self.unusual_rows, self.first_multi_line = Counter[str](), ""
        self.unusual_separator = "" if layout.separator or self.separator == self._usual else self._separator_name
        self.layout = f"separator {self._separator_name}; encoding {encoding}"

    @property
    def _separator_name(self) -> str:
        return NAMES.get(self.separator, repr(self.separator))

    def chunks(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[list[Chunk]]:
        """Yield consecutive rows; the chunks of one list are in any order. Raises TableError for a damaged file."""
        self.unusual_rows, self.first_multi_line = Counter[str](), ""
        positions = {name: self.stored_names.index(name) for name in columns}
        with opened(self.file) as text:
            blocks = LineBlocks(text)
            while (block := blocks.read()) is not None:
                begin = min(max(0, self._rows_begin - block.first + 1), len(block))
                irregular, end = self._read_irregular(block, begin)
                if end < len(block):
                    blocks.give_back(block, end)
                yield self._read_block(block, begin, end, irregular, positions)
                progress.at(self.name, text.tell())
        progress.finish(self.size)

    def _read_irregular(self, block: Block, begin: int) -> tuple[list[QuotedRow], int]:
        """Return the rows from `begin` on that Arrow cannot read, and the line where the next block begins."""
        rows: list[QuotedRow] = []
        next_line = begin
        for line in np.flatnonzero(self._irregular_lines(block, begin)).tolist():
            if line >= next_line:  # not inside the row before
                if (row := self._read_row(block, line)) is None:
                    return rows, line
                rows.append(row)
                next_line = line + row.lines
        return rows, len(block)

    def _irregular_lines(self, block: Block, begin: int) -> NDArray[np.bool_]:
        """Return the lines that are not rows for Arrow: not UTF-8, or with quotes that may not match."""
        if not self.separator.isascii():
            return np.ones(len(block), np.bool_)
        irregular_L = block.is_not_utf8()
        if b'"' not in block.data:
            return irregular_L
        if self.quoted:
            return irregular_L | ~to_mask(pc.match_substring_regex(block.lines, self._regular))
        has_quoted_cell = pc.match_substring_regex(block.lines[begin:], self._quoted_cell)
        self.unusual_rows.update(quoted_cells=pc.sum(has_quoted_cell).as_py() or 0)
        return irregular_L

    def _read_row(self, block: Block, line: int) -> QuotedRow | None:
        """Return the row that begins in a line; None if it continues after the block."""
        if self.quoted:
            return self._quoted_rows.read(block, line)
        return QuotedRow(line, 1, block.text_of(line).rstrip("\r\n").split(self.separator))

    def _read_block(
        self, block: Block, begin: int, end: int, irregular: list[QuotedRow], positions: dict[str, int]
    ) -> list[Chunk]:
        regular_L = np.ones(len(block), np.bool_)
        regular_L[:begin] = regular_L[end:] = False
        for row in irregular:
            regular_L[row.line : row.line + row.lines] = False
            if row.lines > 1:
                first = block.first + row.line
                self.first_multi_line = self.first_multi_line or self.place_text(first, first + row.lines - 1)
                self.unusual_rows.update(multi_line_rows=1, multi_line_row_lines=row.lines)
        chunk, others = self._read_regular(block, regular_L, positions)
        rows = irregular + [row for row in (self._read_row(block, line) for line in others) if row]
        return [chunk, self._read_rows(block.first, rows, positions)] if rows else [chunk]

    def _read_regular(
        self, block: Block, regular_L: NDArray[np.bool_], positions: dict[str, int]
    ) -> tuple[Chunk, list[int]]:
        """Read lines with Arrow; also return those that are blank or have an unusual number of cells."""
        lines = np.flatnonzero(regular_L)
        if not len(lines):
            return Chunk({name: pa.array([], pa.large_string()) for name in positions}, lines), []
        width = self._width(block, lines)
        extra = range(max(self._cells, len(self.stored_names)), width)  # cells without a column, which must be empty
        data = block.join(regular_L)
        table, refused = self._read_csv(data, width, sorted({*positions.values(), *extra} or {0}))
        usual_R = np.zeros(table.num_rows, np.bool_)
        for place in positions.values():  # a row without any value may be blank
            usual_R |= to_mask(table[str(place)].combine_chunks().is_valid())
        for place in extra:
            usual_R &= to_mask(table[str(place)].combine_chunks().is_null())
        others, lines = lines[refused], np.delete(lines, refused)
        if not usual_R.all():
            others, lines = np.append(others, lines[~usual_R]), lines[usual_R]
            table = table.filter(pa.array(usual_R))
        columns = {name: table[str(place)].combine_chunks() for name, place in positions.items()}
        return Chunk(columns, lines + block.first), others.tolist()

    def _read_csv(self, data: bytes, width: int, places: list[int]) -> tuple[pa.Table, list[int]]:
        """Return the cells at some places of the rows of this width, and the numbers of the other rows."""
        refused: list[int] = []

        def refuse(row: Any) -> str:
            refused.append(row.number - 1)
            return "skip"

        names = [str(place) for place in range(width)]
        used = [names[place] for place in places]
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            arrow_csv.ParseOptions(
                delimiter=self.separator, quote_char='"' if self.quoted else False, ignore_empty_lines=False,
                invalid_row_handler=refuse,
            ),
            arrow_csv.ConvertOptions(
                check_utf8=False, include_columns=used, column_types=dict.fromkeys(used, pa.large_string()),
                null_values=[""], strings_can_be_null=True,
            ),
        )  # fmt: skip
        return table, refused

    def _width(self, block: Block, lines: NDArray[np.int64]) -> int:
        """Return the number of cells of most lines, at least that of the columns."""
        rows = (self._read_row(block, line) for line in lines[:20].tolist())
        widths = Counter(len(row.cells) for row in rows if row)
        return max(len(self.stored_names), widths.most_common(1)[0][0])

    def _read_rows(self, first: int, rows: list[QuotedRow], positions: dict[str, int]) -> Chunk:
        """Return rows that were not read by Arrow; `first` is the number of the block's first line."""
        places: list[int] = []
        values: list[list[str | None]] = []
        bad: dict[int, str] = {}
        blank: list[int] = []
        for row in sorted(rows, key=lambda one: one.line):
            place, cells = first + row.line, row.cells
            if isinstance(cells, str):
                bad[place] = cells
            elif self._is_blank(cells, positions):
                blank.append(place)
            elif message := self._wrong_width(cells):
                bad[place] = message
            else:
                places.append(place)
                values.append([cells[position] or None for position in positions.values()])
        columns = dict(zip(positions, map(list, zip(*values, strict=True)), strict=True)) if values else {}
        last_lines = {first + row.line: first + row.line + row.lines - 1 for row in rows if row.lines > 1}
        empty: dict[str, Any] = {name: [] for name in positions}
        return Chunk(columns or empty, np.array(places, np.int64), bad, blank, last_lines)

    def _is_blank(self, cells: list[str], positions: dict[str, int]) -> bool:
        width = len(self.stored_names)
        if width == 1:
            return cells == ([] if self.quoted else [""])
        if len(cells) < width:
            return len(cells) <= 1 and not "".join(cells).strip()
        return not any(cells[place] for place in positions.values()) and not any(map(str.strip, cells))

    def _wrong_width(self, cells: list[str]) -> str | None:
        """Return a message if a row has too few or too many cells; more cells may be empty or have no column."""
        width = len(self.stored_names)
        if len(cells) == width or (len(cells) > width and not any(map(str.strip, cells[max(self._cells, width) :]))):
            return None
        return f"the row has {len(cells)} fields ({preview(cells)}), the header has {width}. Correct the row."

    def _uses_quotes(self, lines: list[str]) -> bool:
        """Return whether quotes enclose cells: always in CSV; in TSV if all cells of the header are quoted."""
        if self._usual == ",":
            return True
        cells = lines[0].strip().split(self.separator) if lines else []
        return bool(cells) and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)

    def _header(self, lines: list[str]) -> tuple[list[str], int]:
        """Return the names in the header, and the number of its lines."""
        if not lines:
            return [], 0
        if not self.quoted:
            return [name.strip() for name in lines[0].rstrip("\r\n").split(self.separator)], 1
        reader = csv.reader(lines, delimiter=self.separator, strict=True)
        try:
            return [name.strip() for name in next(reader)], reader.line_num
        except csv.Error as error:
            raise TableError(
                f"{self.file.location} line 1: the quotes do not match ({error}). Double each quote inside a quoted "
                "field."
            ) from error


def _sample(file: TableFile) -> tuple[list[str], str]:
    """Read the first lines, for the header and the separator, and the encoding."""
    with opened(file) as text:
        block = LineBlocks(text, SAMPLE_BYTES).read()
        lines = [] if block is None else [block.text_of(line) for line in range(min(len(block), SAMPLE_LINES + 1))]
        return lines, text.encoding


def _marked_separator(lines: list[str]) -> str | None:
    """Return the separator of a first line `sep=;`, as spreadsheets write it."""
    first = lines[0].strip("\r\n") if lines else ""
    return first[4] if len(first) == 5 and first.lower().startswith("sep=") else None


def _guess(lines: list[str], usual: str) -> str:
    """Return the usual separator if the header has it, else the one that gives the most cells."""
    if not lines:
        return usual
    widths = {one: _width(lines, one) for one in SEPARATORS}
    if usual in lines[0] and (widths[usual] or not any(widths.values())):
        return usual
    best = max(SEPARATORS, key=lambda one: (widths[one], lines[0].count(one)))
    return best if best in lines[0] else usual


def _width(lines: list[str], separator: str) -> int:
    """Return the number of cells per line; 0 if lines differ or have only one."""
    try:
        counts = {len(cells) for cells in csv.reader(lines, delimiter=separator) if cells}
    except csv.Error:
        return 0
    return counts.pop() if len(counts) == 1 and counts != {1} else 0
