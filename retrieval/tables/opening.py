"""Open text files. Compression and encoding are detected from the content, not from the name."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from retrieval.errors import TableError
from retrieval.tables.files import require_file

MAX_LINE = 64 * 2**20  # characters
LINES_PER_PROGRESS_UPDATE = 2_000
_FIRST_BYTES = 4_096
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BZIP2 = re.compile(rb"BZh[1-9](1AY&|\x17rE8)")  # the header, then the start of a block, or the end of an empty file
_BINARY_FORMATS = {
    b"PAR1": "Parquet; rename it to .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save it as CSV",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"ORC": "an ORC file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"\x04\x22\x4d\x18": "compressed as lz4; use gzip or zstd",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"SQLite format 3\0": "a SQLite database; write the table as CSV",
}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class ReadingProgress(Protocol):
    """Receives the progress of reading files."""

    def at(self, description: str, bytes_of_file: int) -> None:
        """Report how many bytes of the current file were read."""

    def finish(self, size: int) -> None:
        """Report that the current file of `size` bytes is read."""


class NoReadingProgress:
    """Ignores the progress."""

    def at(self, description: str, bytes_of_file: int) -> None:
        """Do nothing."""

    def finish(self, size: int) -> None:
        """Do nothing."""


@contextmanager
def opened_text(path: Path, newline: str | None = "") -> Iterator[tuple[TextIO, BinaryIO]]:
    """Yield the file as text, and the raw file, whose position shows the progress.

    A byte that is not UTF-8 becomes a lone surrogate, so only its row is invalid. Raises TableError for a file that is
    missing, truncated, or not text.
    """
    require_file(path)
    compression = ""
    try:
        with path.open("rb") as raw:
            compression = _compression(raw.peek(8)) if raw.peek(8) else ""
            content = _decompress(raw, compression)
            encoding = _encoding(path, _first_bytes(path, compression))
            errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
            yield io.TextIOWrapper(content, encoding, errors=errors, newline=newline), raw
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise TableError(
            f"{path} is truncated or not a {compression} file ({error}). Download or write it again."
        ) from error
    except UnicodeError as error:
        raise TableError(f"{path} is not valid {_encoding_name(error)} ({error}). Write it as UTF-8.") from error
    except OSError as error:
        reason = error.strerror or f"truncated or not a {compression} file ({error})"
        raise TableError(f"{path} cannot be read: {reason}. Download or write it again.") from error


def text_lines(path: Path, progress: ReadingProgress) -> Iterator[tuple[int, str]]:
    """Yield each line, stripped, with its number counted from 1; blank lines are empty texts. Raises TableError."""
    with opened_text(path, newline=None) as (text, raw):
        number = 0
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise line_too_long(path, number)
            if number % LINES_PER_PROGRESS_UPDATE == 1:
                progress.at(path.name, raw.tell())
            yield number, line.strip()
    progress.finish(path.stat().st_size)


def line_too_long(path: Path, number: int) -> TableError:
    """Return the error for a line beyond MAX_LINE."""
    return TableError(f"{path} line {number} is longer than {MAX_LINE // 2**20} MB. Write one record per line.")


def binary_format(head: bytes) -> str | None:
    """Return the format of a binary file by its first bytes, with the fix; None if it may be text."""
    binary = b"\0" in head  # some formats start with letters, as the header ORCID does
    formats = ((magic, name) for magic, name in _BINARY_FORMATS.items() if binary or not magic.isalnum())
    return next((name for magic, name in formats if head.startswith(magic)), None)


def compressed_as(path: Path) -> str:
    """Return the compression of a file, detected from its content; empty if none."""
    with path.open("rb") as file:
        return _compression(file.read(8))


def _compression(head: bytes) -> str:
    if _BZIP2.match(head):
        return "bzip2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def _decompress(raw: Any, compression: str) -> Any:
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(raw, "zstd")
    openers: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open}
    return openers[compression](raw) if compression else raw


def _first_bytes(path: Path, compression: str) -> bytes:
    with path.open("rb") as raw:
        return bytes(_decompress(raw, compression).read(_FIRST_BYTES))


def _encoding(path: Path, head: bytes) -> str:
    """Return the encoding, detected from the first bytes. Raises TableError if they are not text."""
    if name := binary_format(head):
        raise TableError(f"{path} is {name}.")
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    zeros = [byte == 0 for byte in head[:4]]  # headers start with Latin letters; in UTF-16 every second byte is 0
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8"


def _encoding_name(error: UnicodeError) -> str:
    return error.encoding.upper() if isinstance(error, UnicodeDecodeError) else "text"
