"""What front and engine say to each other on their socket pair: length-prefixed frames, no pickle."""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json, to_json

HEAD = struct.Struct("<IB")  # payload bytes, kind
ANSWERS = struct.Struct("<IH5f2I")  # batch number, pieces, its Stages
PIECE = struct.Struct("<BI")  # outcome, bytes
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


class Outcome(IntEnum):
    """How the engine fared with one piece; its bytes are the results' JSON, a sentence, or nothing."""

    ANSWERED = 0
    REFUSED = 1
    BROKEN = 2


class Asked(NamedTuple):
    """One piece of a batch: texts of one request, and how that request wants them answered."""

    queries: Sequence[str]
    k: int
    weight: float | None = None
    filter: dict[str, list[Any]] | None = None
    min_score: float | None = None


class Stages(NamedTuple):
    """Seconds the engine spent on one batch; the tokens it encoded, and the padding among them."""

    tokenize: float
    encode: float
    search: float
    serialize: float
    total: float
    tokens: int
    padding: int


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
