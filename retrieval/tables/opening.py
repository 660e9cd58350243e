"""Open text files. Compression and encoding are detected from the content, not from the name."""

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from retrieval.errors import TableError
from retrieval.tables.files import TableFile

FIRST_BYTES, _MAGIC_BYTES = 4_096, 16
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


class TextFile:
    """The content of a text file as UTF-8 without a byte order mark. `encoding`: that of the file, in upper case."""

    def __init__(self, file: TableFile, raw: BinaryIO, content: Any) -> None:
        """Detect the encoding from the first bytes. Raises TableError if they are not text."""
        self.file, self._raw, self._content = file, raw, content
        self._head = bytes(content.read(FIRST_BYTES))
        encoding = _encoding(file.location, self._head)
        self.encoding = "UTF-8" if encoding.startswith("utf-8") else encoding[:6].upper()
        self._decoder = None if self.encoding == "UTF-8" else codecs.getincrementaldecoder(encoding)()
        self._head = self._head.removeprefix(codecs.BOM_UTF8 if encoding == "utf-8-sig" else b"")

    def read(self, size: int) -> bytes:
        """Return about `size` bytes, at least one; none at the end. A byte that is not UTF-8 is not changed."""
        head, self._head = self._head, b""
        if self._decoder is None:
            return head or bytes(self._content.read(size))
        data, text = head or bytes(self._content.read(size)), ""
        while not (text := self._decoder.decode(data, final=not data)) and data:
            data = bytes(self._content.read(size))
        return text.encode()

    def tell(self) -> int:
        """Return the number of bytes of the file that were read."""
        return self._raw.tell()


@contextmanager
def opened(file: TableFile) -> Iterator[TextFile]:
    """Yield the content of a text file. Raises TableError if it is missing, truncated, or not text."""
    compression = ""
    try:
        with file.open_bytes() as raw:
            compression = _compression(raw.peek(_MAGIC_BYTES))
            yield TextFile(file, raw, _decompress(raw, compression))
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise TableError(
            f"{file.location} is truncated or not a {compression} file ({error}). Download or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise TableError(
            f"{file.location} is not valid {error.encoding.upper()} ({error}). Write it as UTF-8."
        ) from error
    except OSError as error:
        reason = error.strerror or f"truncated or not a {compression} file ({error})"
        raise TableError(f"{file.location} cannot be read: {reason}. Download or write it again.") from error


def binary_format(head: bytes) -> str | None:
    """Return the format of a binary file by its first bytes, with the fix; None if it may be text."""
    binary = b"\0" in head  # some formats start with letters, as the header ORCID does
    formats = ((magic, name) for magic, name in _BINARY_FORMATS.items() if binary or not magic.isalnum())
    return next((name for magic, name in formats if head.startswith(magic)), None)


def compressed_as(file: TableFile) -> str:
    """Return the compression of a file, detected from its content; empty if none, or if the file cannot be read."""
    with suppress(OSError), file.open_bytes() as raw:
        return _compression(raw.peek(_MAGIC_BYTES))
    return ""


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


def _encoding(location: Path | str, head: bytes) -> str:
    """Return the encoding, detected from the first bytes. Raises TableError if they are not text."""
    if name := binary_format(head):
        raise TableError(f"{location} is {name}.")
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    zeros = [byte == 0 for byte in head[:4]]  # headers start with Latin letters; in UTF-16 every second byte is 0
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8"
