"""Read text files as blocks of whole lines, so that a file of any size needs little memory.

Suffixes: L lines of a block, N bytes of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.errors import TableError
from retrieval.tables.files import TableFile
from retrieval.tables.opening import ReadingProgress, TextFile, opened

BLOCK = 8 * 2**20  # bytes
MAX_LINE = 64 * 2**20  # bytes
_LINE_FEED, _RETURN = 10, 13


@dataclass(frozen=True)
class Block:
    """Whole lines of a file as UTF-8; `first` is the number of the first line, counted from 1."""

    data: bytes
    first: int
    ends_L: NDArray[np.int64]  # offset after the end of each line
    is_last: bool

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.ends_L)

    def start(self, line: int) -> int:
        """Return the offset of a line, counted from 0 in this block."""
        return int(self.ends_L[line - 1]) if line else 0

    def bytes_of(self, line: int) -> bytes:
        """Return one line with its line end."""
        return self.data[self.start(line) : self.ends_L[line]]

    def text_of(self, line: int) -> str:
        """Return one line with its line end. A byte that is not UTF-8 becomes a lone surrogate."""
        return self.bytes_of(line).decode("utf-8", "surrogateescape")

    def join(self, selected_L: NDArray[np.bool_]) -> bytes:
        """Return the selected lines with line feeds as line ends."""
        if selected_L.all():
            return _with_line_feeds(self.data)
        steps_L = np.diff(selected_L.astype(np.int8), prepend=0, append=0)
        runs = zip(np.flatnonzero(steps_L == 1).tolist(), np.flatnonzero(steps_L == -1).tolist(), strict=True)
        return b"".join(_with_line_feeds(self.data[self.start(first) : self.start(end)]) for first, end in runs)

    @property
    def lines(self) -> pa.LargeBinaryArray:
        """Return the lines with their line ends, without a copy."""
        offsets = np.concatenate([[0], self.ends_L])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def is_not_utf8(self) -> NDArray[np.bool_]:
        """Return the lines with a byte that is not UTF-8."""
        bad_L = np.zeros(len(self), np.bool_)
        if not self.data.isascii() and not _is_utf8(self.data):
            offsets = np.flatnonzero(np.frombuffer(self.data, np.uint8) >= 0x80)
            for line in np.unique(np.searchsorted(self.ends_L, offsets, "right")).tolist():
                bad_L[line] = not _is_utf8(self.bytes_of(line))
        return bad_L


class LineBlocks:
    """Blocks of one file. Lines at the end of a block can be returned, to be read with the next one."""

    def __init__(self, text: TextFile, size: int | None = None) -> None:
        """`size`: bytes per block; None: BLOCK."""
        self._text, self._size = text, size or BLOCK
        self._rest, self._first, self._ended = b"", 1, False

    def read(self) -> Block | None:
        """Return the next block; None at the end. Raises TableError for a line longer than MAX_LINE."""
        parts, length, cut = [self._rest], len(self._rest), 0
        least = length + max(self._size, length)  # a row of many lines is read again few times
        while not self._ended and not (length >= least and (cut := _last_line_end(parts[-1]))):
            chunk = self._text.read(self._size)
            self._ended = not chunk
            parts.append(chunk)
            length += len(chunk)
            if length > least + MAX_LINE:  # no line end in at least MAX_LINE bytes
                cut = len(chunk)
                break
        data = b"".join(parts)
        cut = length if self._ended else length - len(parts[-1]) + cut
        self._rest, data = data[cut:], data[:cut]
        if not data:
            return None
        block = Block(data, self._first, _line_ends(data), self._ended)
        lengths_L = np.diff(block.ends_L, prepend=0)
        if lengths_L.max() > MAX_LINE:
            raise line_too_long(self._text.file.location, self._first + int(np.argmax(lengths_L > MAX_LINE)))
        self._first += len(block)
        return block

    def give_back(self, block: Block, line: int) -> None:
        """Read the lines of a block from `line` on again, with more lines after them."""
        self._rest = block.data[block.start(line) :] + self._rest
        self._first = block.first + line


def text_lines(path: Path, progress: ReadingProgress) -> Iterator[tuple[int, str]]:
    """Yield each line, stripped, with its number counted from 1; blank lines are empty texts. Raises TableError."""
    with opened(TableFile.local(path)) as text:
        blocks = LineBlocks(text)
        while (block := blocks.read()) is not None:
            for line in range(len(block)):
                yield block.first + line, block.text_of(line).strip()
            progress.at(path.name, text.tell())
    progress.finish(path.stat().st_size)


def line_too_long(location: Path | str, number: int) -> TableError:
    """Return the error for a line beyond MAX_LINE."""
    return TableError(f"{location} line {number} is longer than {MAX_LINE // 2**20} MB. Write one record per line.")


def _last_line_end(data: bytes) -> int:
    """Return the offset after the last line end; 0 without one. A return at the end may be half of a line end."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1


def _line_ends(data: bytes) -> NDArray[np.int64]:
    bytes_N = np.frombuffer(data, np.uint8)
    is_end_N = bytes_N == _LINE_FEED
    if b"\r" in data:
        is_end_N |= (bytes_N == _RETURN) & ~np.append(is_end_N[1:], False)
    ends_L = np.flatnonzero(is_end_N) + 1
    return ends_L if is_end_N[-1] else np.append(ends_L, len(data))


def _with_line_feeds(lines: bytes) -> bytes:
    return lines.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in lines else lines


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
