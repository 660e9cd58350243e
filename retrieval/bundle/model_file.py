"""Check an ONNX file before ONNX Runtime opens it: which files it refers to, and whether it can loop.

Layout: protobuf, as in onnx.proto. References that are not encoded as ONNX's own writers do are refused.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.index_file import Buffer
from retrieval.bundle.manifest import NAME
from retrieval.errors import BundleError

# External data in ONNX: field 13 of a tensor, an entry with the key "location" and a path, each with its length.
KEY = b"location"
ENTRY = re.compile(rb"\x6a(.)\x0a\x08location\x12(.)", re.DOTALL)

# Field numbers of a model, a graph, a tensor, a function, a node and an attribute.
GRAPH, FUNCTIONS = 7, 25
GRAPH_NODES, INITIALIZERS, RAW_DATA = 1, 5, 9
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME = 1, 2, 8
TENSOR_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 10: np.float16}  # onnx.TensorProto.DataType
FUNCTION_NODES, OPERATOR, ATTRIBUTES, SUBGRAPH, SUBGRAPHS = 7, 4, 5, 6, 11
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


LARGE_BYTES = 1 << 16  # of weights whose memory processes share
ALIGNMENT = 64  # bytes, as ONNX Runtime aligns its own


class ProtobufField(NamedTuple):
    """A field of a protobuf message: its number, and where its bytes begin and end."""

    number: int
    start: int
    stop: int


def external_files(path: Path, written: Buffer) -> list[str]:
    """Check the bytes of a model, named `path` in errors; return the names of the files that hold its weights.

    Raises BundleError if it refers to data outside of the bundle's folder, where files are not verified, or if a node
    contains a graph (Loop, Scan, If): exports have none, and one may run for ever.
    """
    written = bytes(written)  # no copy if it is bytes
    if not written:
        raise BundleError(f"{path} is empty. Export the bundle again.")
    names = _references(path, written)
    try:
        operator = _node_with_graph(written)
    except ValueError as error:
        raise BundleError(
            f"{path} is not a model that ONNX Runtime can read ({error}). Export the bundle again."
        ) from error
    if operator is not None:
        raise BundleError(
            f"{path} has a node {operator!r} with a graph inside. Such a node may run for ever, and exports do "
            "not contain one. Export the bundle again."
        )
    return names


def large_weights(written: bytes) -> dict[str, NDArray[np.generic]]:
    """Copy the large weights of a model that `external_files` has checked to aligned arrays; return them by name.

    ONNX Runtime can use this memory instead of its own. Forked processes then share it. Weights of other types or in
    other files, and small ones, are left out.
    """
    weights = {}
    for graph in _fields(written, 0, len(written)):
        if graph.number == GRAPH:
            for field in _fields(written, graph.start, graph.stop):
                if field.number == INITIALIZERS and field.stop - field.start >= LARGE_BYTES:
                    name, array = _tensor(written, field)
                    if array is not None:
                        weights[name] = array
    return weights


def _tensor(written: bytes, field: ProtobufField) -> tuple[str, NDArray[np.generic] | None]:
    """Return the name of a tensor and an aligned copy of its raw data; None for an unknown type or without raw data."""
    name, kind, dims, raw = "", None, [], None
    for part in _fields(written, field.start, field.stop):
        if part.number == TENSOR_DIMS:
            dims += _varints(written, part)
        elif part.number == TENSOR_TYPE:
            kind = TENSOR_TYPES.get(_varint(written, part.start, part.stop)[0])
        elif part.number == TENSOR_NAME:
            name = written[part.start : part.stop].decode()
        elif part.number == RAW_DATA:
            raw = part
    if kind is None or raw is None or math.prod(dims) * np.dtype(kind).itemsize != raw.stop - raw.start:
        return name, None
    size = raw.stop - raw.start
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    aligned = memory[first : first + size]
    aligned[:] = np.frombuffer(written, np.uint8, size, raw.start)
    return name, aligned.view(kind).reshape(dims)


def _varints(written: bytes, field: ProtobufField) -> list[int]:
    """Return the numbers of a repeated field, which may be packed."""
    numbers, place = [], field.start
    while place < field.stop:
        number, place = _varint(written, place, field.stop)
        numbers.append(number)
    return numbers


def _references(path: Path, written: bytes) -> list[str]:
    """Return the names of files with external data. Every encoding of the key's length 8 ends in the byte 8 or 0."""
    names: dict[str, None] = {}
    try:
        parts = list(_parts_without_weights(written))
    except ValueError:  # not a protobuf message; reported elsewhere
        parts = [(0, len(written))]
    for start, stop in parts:
        place = written.find(KEY, start, stop)
        while place >= 0:
            if written[max(place - 1, 0)] in (0, 8):
                name = _external_name(written, place)
                if name is None:
                    raise BundleError(f"{path} refers to data outside of the bundle. Export the bundle again.")
                names[name] = None
            place = written.find(KEY, place + 1, stop)
    return list(names)


def _parts_without_weights(written: bytes) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file without the raw data of weights, which cannot hold a reference."""
    start = 0
    for field in _fields(written, 0, len(written)):
        if field.number == GRAPH:
            for tensor in _fields(written, field.start, field.stop):
                if tensor.number == INITIALIZERS:
                    for part in _fields(written, tensor.start, tensor.stop):
                        if part.number == RAW_DATA:
                            yield start, part.start
                            start = part.stop
    yield start, len(written)


def _external_name(written: bytes, place: int) -> str | None:
    """Return the name in the entry around this key; None unless it is a plain file name."""
    entry = ENTRY.match(written, place - 4) if place >= 4 else None
    if entry is None:
        return None
    length, name_length = entry[1][0], entry[2][0]
    name = written[entry.end() : entry.end() + name_length].decode(errors="replace")
    # The entry must end with the name, so nothing can replace it. A length of 128 or more would take two bytes.
    return name if length == 12 + name_length < 128 and NAME.fullmatch(name) is not None else None


def _node_with_graph(written: bytes) -> str | None:
    """Return the operator of the first node that contains a graph. Raises ValueError for an invalid message."""
    for field in _fields(written, 0, len(written)):
        if field.number in (GRAPH, FUNCTIONS):
            nodes = GRAPH_NODES if field.number == GRAPH else FUNCTION_NODES
            for node in _fields(written, field.start, field.stop):
                if node.number == nodes and _has_graph(written, node):
                    return _operator(written, node)
    return None


def _has_graph(written: bytes, node: ProtobufField) -> bool:
    return any(
        part.number in (SUBGRAPH, SUBGRAPHS)
        for attribute in _fields(written, node.start, node.stop)
        if attribute.number == ATTRIBUTES
        for part in _fields(written, attribute.start, attribute.stop)
    )


def _operator(written: bytes, node: ProtobufField) -> str:
    for part in _fields(written, node.start, node.stop):
        if part.number == OPERATOR:
            return written[part.start : min(part.stop, part.start + 64)].decode(errors="replace")
    return "without a name"


def _fields(written: bytes, place: int, stop: int) -> Iterator[ProtobufField]:
    """Yield the fields of the message between two offsets. Raises ValueError."""
    while place < stop:
        tag, place = _varint(written, place, stop)
        kind = tag & 7
        if kind == BYTES:
            length, place = _varint(written, place, stop)
        elif kind == VARINT:
            start = place
            _, place = _varint(written, place, stop)
            yield ProtobufField(tag >> 3, start, place)
            continue
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if length > stop - place:
            raise ValueError("a field is longer than the file")
        yield ProtobufField(tag >> 3, place, place + length)
        place += length


def _varint(written: bytes, place: int, stop: int) -> tuple[int, int]:
    """Decode a number of seven bits per byte; return it and the offset after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= stop:
            break
        byte = written[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 128:
            return number & ((1 << 64) - 1), place
    raise ValueError("a number does not end")
