"""Encode and decode the messages between front and engine: length-prefixed frames on a socket pair, no pickle."""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json, to_json

HEAD = struct.Struct("<IB")  # payload bytes, kind
# The batch number has 64 bits: a fast engine exhausts 32 bits in a few weeks.
ANSWERS = struct.Struct("<QH5f3I")  # batch number, pieces, its Stages
PIECE = struct.Struct("<BI")  # outcome, bytes
PART = struct.Struct("<QH")  # batch number, piece
PART_BYTES = 1 << 20  # of one piece in one frame; larger pieces are sent in several frames
MAX_PARTS = 1 << 30  # bytes of parts without their ANSWERS frame; several times the most of all lanes
MAX_PAYLOAD = 1 << 28  # far above any batch; a larger length means that the stream is out of step


class Source(Protocol):
    """What frames are read from: `read` waits for so many bytes, and gives fewer only when there are no more."""

    def read(self, size: int, /) -> bytes: ...


class Kind(IntEnum):
    """What a frame carries."""

    READY = 1  # engine → front: JSON, what was opened
    FAILED = 2  # engine → front: a sentence, why nothing was opened
    BATCH = 3  # front → engine: JSON, texts to answer
    ANSWERS = 4  # engine → front: stage times and each piece's bytes
    PAUSED = 5  # front → engine: JSON, ids of labels not to be shown; and back: those that the bundle has not
    PART = 6  # engine → front: the next bytes of a piece's results, whose batch's ANSWERS follow


class Outcome(IntEnum):
    """Outcome of one piece. Its bytes are the JSON of the results, an error message, or empty."""

    ANSWERED = 0
    REFUSED = 1
    BROKEN = 2
    TOO_LARGE = 3  # its results exceed the limit of one answer
    POSTPONED = 4  # the answers of its batch have too many bytes in total; send it again


class Asked(NamedTuple):
    """One piece of a batch: texts of one request, and how that request wants them answered."""

    queries: Sequence[str]
    k: int
    weight: float | None = None
    filter: dict[str, list[Any]] | None = None
    min_score: float | None = None


class Stages(NamedTuple):
    """Seconds that the engine spent on one batch, tokens and padding that it encoded.

    `full_scans` counts the queries since the last batch that were compared with every label because the index found too
    few.
    """

    tokenize: float
    encode: float
    search: float
    serialize: float
    total: float
    tokens: int
    padding: int
    full_scans: int = 0


class Answers(NamedTuple):
    """One batch's answers, in the order of its pieces."""

    number: int
    stages: Stages
    pieces: list[tuple[Outcome, bytes]]


def frame(kind: Kind, payload: bytes) -> bytes:
    return HEAD.pack(len(payload), kind) + payload


def read_frame(source: Source) -> tuple[Kind, bytes] | None:
    """The next frame; None when the other side has gone."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    size, kind = _checked(*HEAD.unpack(head))
    payload = source.read(size)
    return (kind, payload) if len(payload) == size else None


class Splitter:
    """Cuts a stream that arrives in arbitrary chunks into its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Every frame that `data` completes. Raises ValueError when the stream is out of step."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEAD.size:
            size, kind = _checked(*HEAD.unpack_from(self._buffer, start))
            stop = start + HEAD.size + size
            if len(self._buffer) < stop:
                break
            yield kind, bytes(memoryview(self._buffer)[start + HEAD.size : stop])
            start = stop
        del self._buffer[:start]


def pack_batch(number: int, pieces: Sequence[Asked]) -> bytes:
    return frame(Kind.BATCH, to_json((number, pieces)))


def unpack_batch(payload: bytes) -> tuple[int, list[Asked]]:
    number, pieces = from_json(payload)
    return number, [Asked(*piece) for piece in pieces]


class Parts:
    """Join the results of pieces that are too large for one frame."""

    def __init__(self, limit: int = MAX_PARTS) -> None:
        """Hold at most `limit` bytes."""
        self._parts: dict[tuple[int, int], list[bytes]] = {}  # (batch number, index of the piece) → its parts
        self._limit = limit
        self._held = 0  # bytes

    def add(self, payload: bytes) -> None:
        """Store the payload of one PART frame. Raises ValueError when it is too short or there are too many."""
        if len(payload) < PART.size:
            raise ValueError("a part of an answer without its number: the stream is out of step")
        self._held += len(payload)
        if self._held > self._limit:
            raise ValueError(f"parts of answers with more than {self._limit} bytes: the engine is out of step")
        self._parts.setdefault(PART.unpack_from(payload), []).append(payload[PART.size :])

    def complete(self, answers: Answers) -> Answers:
        """Return the answers with the parts that were received before them."""
        if not self._parts:
            return answers
        pieces = []
        for place, (outcome, body) in enumerate(answers.pieces):
            parts = self._parts.pop((answers.number, place), [])
            self._held -= sum(PART.size + len(part) for part in parts)
            pieces.append((outcome, b"".join([*parts, body])))
        return answers._replace(pieces=pieces)


def pack_parts(answers: Answers) -> Iterator[bytes]:
    """Yield a PART frame for each part of a large piece, then the ANSWERS frame."""
    pieces = []
    for place, (outcome, body) in enumerate(answers.pieces):
        last = max(len(body) - 1, 0) // PART_BYTES * PART_BYTES
        for start in range(0, last, PART_BYTES):
            yield frame(Kind.PART, PART.pack(answers.number, place) + body[start : start + PART_BYTES])
        pieces.append((outcome, body[last:]))
    yield pack_answers(answers._replace(pieces=pieces))


def pack_answers(answers: Answers) -> bytes:
    heads = [PIECE.pack(outcome, len(body)) for outcome, body in answers.pieces]
    bodies = [body for _, body in answers.pieces]
    return frame(Kind.ANSWERS, b"".join([ANSWERS.pack(answers.number, len(heads), *answers.stages), *heads, *bodies]))


def unpack_answers(payload: bytes) -> Answers:
    number, count, *stages = ANSWERS.unpack_from(payload)
    bodies_at = ANSWERS.size + count * PIECE.size
    pieces = []
    for outcome, size in PIECE.iter_unpack(payload[ANSWERS.size : bodies_at]):
        pieces.append((Outcome(outcome), payload[bodies_at : bodies_at + size]))
        bodies_at += size
    return Answers(number, Stages(*stages), pieces)


def pack_json(kind: Kind, value: Any) -> bytes:
    return frame(kind, to_json(value))


def _checked(size: int, kind: int) -> tuple[int, Kind]:
    if size > MAX_PAYLOAD:
        raise ValueError(f"a frame of {size} bytes: the stream is out of step")
    return size, Kind(kind)
