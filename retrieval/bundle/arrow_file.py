"""Read Arrow files and refuse compressed ones, whose content can be a thousand times as large in memory.

A file is a magic word, a stream of messages and an index of the messages. Only the stream is read, so every message
that is read was checked here. Layout of messages: Apache Arrow's Message.fbs (flatbuffers).
"""

import struct

import pyarrow as pa

MAGIC = b"ARROW1\0\0"
RECORD_BATCH, DICTIONARY = "record batch", "dictionary"
# Field numbers in the tables Message, DictionaryBatch and RecordBatch.
HEADER, DATA, COMPRESSION = 2, 1, 3


def read_uncompressed(content: pa.Buffer) -> pa.Table:
    """Read an Arrow file without copying it. Raises ValueError for a compressed one, and pa.ArrowException."""
    if content.size < len(MAGIC) or content.slice(0, len(MAGIC)).to_pybytes() != MAGIC:
        raise ValueError("it does not begin like an Arrow file")
    stream = content.slice(len(MAGIC))
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(stream)):
        of_dictionary = message.type == DICTIONARY
        if message.type in (RECORD_BATCH, DICTIONARY) and _compressed(message.metadata.to_pybytes(), of_dictionary):
            raise ValueError("it is compressed")
    with pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
        return reader.read_all()


def _compressed(metadata: bytes, dictionary: bool) -> bool:
    """Return whether the data of a message is compressed. Raises ValueError for metadata with a wrong offset."""
    try:
        (root,) = struct.unpack_from("<I", metadata)
        table = _follow(metadata, _field(metadata, root, HEADER))
        if dictionary:
            table = _follow(metadata, _field(metadata, table, DATA))
        return _field(metadata, table, COMPRESSION) != 0
    except struct.error as error:
        raise ValueError("a message has a wrong offset") from error


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return the offset of a table's field; 0 if the table does not have it."""
    (back,) = struct.unpack_from("<i", metadata, table)
    start = table - back
    if start < 0:
        raise ValueError("a message has a wrong offset")
    (length,) = struct.unpack_from("<H", metadata, start)
    entry = 4 + 2 * number
    if entry + 2 > length:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, start + entry)
    return table + int(offset) if offset else 0


def _follow(metadata: bytes, field: int) -> int:
    """Return the offset of the table that a field refers to."""
    if not field:
        raise ValueError("a message has no header")
    (offset,) = struct.unpack_from("<I", metadata, field)
    return field + int(offset)
