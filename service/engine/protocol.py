"""Messages between front and engine: length-prefixed MessagePack frames on a socket pair, no pickle.

The length of a frame is checked before its payload is read. msgspec checks the types of a payload while it is decoded.
benchmarks/ipc_messages.py compares the cost with that of JSON and packed structs (docs/decisions/0074).
"""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol, Self

import msgspec
from pydantic_core import from_json, to_json

HEAD = struct.Struct("<IB")  # payload bytes, kind
NUMBER = struct.Struct("<i")
PART_BYTES = 1 << 20  # bytes of one answer in one frame; larger answers are sent in several frames
MAX_PART_BYTES = 1 << 30  # of parts whose ANSWERS frame has not arrived; several times the most of all worker threads
PART_OVERHEAD = 64  # bytes that an empty part is counted as, so that empty parts are bounded as well
MAX_PAYLOAD = 1 << 28  # far above any batch; a larger length means that the stream is out of step

FilterValues = dict[str, list[str | int | float | bool]]


class FrameKind(IntEnum):
    """Content of a frame."""

    READY = 1  # engine → front: BundleInfo
    FAILED = 2  # engine → front: the reason why the bundle was not opened
    BATCH = 3  # front → engine: Batch
    ANSWERS = 4  # engine → front: BatchAnswers
    PAUSED = 5  # front → engine: ids of paused labels; engine → front: those that the bundle does not have
    PART = 6  # engine → front: AnswerPart; the BatchAnswers of the same batch follow
    LOADED = 7  # host → front: the bundle is loaded
    FORK = 8  # front → host, with the descriptor of an engine's pipe
    FORKED = 9  # host → front: NUMBER, the process id of the new engine
    REAP = 10  # front → host: NUMBER, the process id of an engine
    REAPED = 11  # host → front: NUMBER, the engine's exit code; empty while it runs


class Outcome(IntEnum):
    """Outcome of one query. Its bytes are the JSON of the results, an error message, or empty."""

    ANSWERED = 0
    REFUSED = 1
    BROKEN = 2
    TOO_LARGE = 3  # its results exceed the limit of one answer
    UNAVAILABLE = 5  # the server of the index is away
    POSTPONED = 4  # the answers of its batch have too many bytes in total; send it again


class Query(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Texts of one request, or of a slice of it, and the options for answering them."""

    texts: Sequence[str]
    k: int
    weight: float | None = None
    # JSON, because MessagePack has no integers above 64 bits; it is also encoded once, not once per slice of a request
    filter_json: bytes = b""
    min_score: float | None = None
    memory_weight: float | None = None
    supporting: int = 0

    @classmethod
    def create(
        cls,
        texts: Sequence[str],
        k: int,
        weight: float | None = None,
        filter: FilterValues | None = None,
        min_score: float | None = None,
        memory_weight: float | None = None,
        supporting: int = 0,
    ) -> Self:
        """Create a query from a filter that is not yet encoded."""
        return cls(texts, k, weight, to_json(filter) if filter else b"", min_score, memory_weight, supporting)

    @property
    def filter(self) -> FilterValues | None:
        """Return the filter, decoded; None without one."""
        return from_json(self.filter_json) if self.filter_json else None

    @property
    def options(self) -> tuple[int, float | None, bytes, float | None, float | None, int]:
        """Return the options without the texts. Queries with equal options can be searched together."""
        return self.k, self.weight, self.filter_json, self.min_score, self.memory_weight, self.supporting

    @property
    def hits_per_text(self) -> int:
        """Return k; each training query that a hit lists counts as another hit, since it costs about as much."""
        return self.k * (1 + self.supporting)

    def with_texts(self, texts: Sequence[str]) -> Self:
        """Return a query for other texts with the same options."""
        return type(self)(texts, *self.options)

    def to_bytes(self) -> bytes:
        """Return bytes that are equal for equal queries, as a key."""
        return ENCODER.encode(self)


class Batch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Queries that an engine answers together."""

    number: int
    queries: list[Query]


class Stages(NamedTuple):
    """Seconds that the engine spent on each stage of a batch, and the tokens and padding that it encoded.

    `full_scans` counts the queries since the last batch that were compared with every label because the index returned
    too few.
    """

    tokenize: float
    encode: float
    search: float
    serialize: float
    total: float
    tokens: int
    padding: int
    full_scans: int = 0


class QueryAnswer(NamedTuple):
    """Outcome of one query, and the bytes that belong to it."""

    outcome: Outcome
    body: bytes = b""


class BatchAnswers(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answers of one batch, in the order of its queries."""

    number: int
    stages: Stages
    answers: list[QueryAnswer]


class AnswerPart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The next bytes of an answer that is too large for one frame."""

    number: int  # of the batch
    place: int  # of the query in its batch
    data: bytes


class FilterAttribute(msgspec.Struct, frozen=True, array_like=True):
    """One attribute that a filter may name, its most frequent values, and whether there are more of them."""

    name: str
    values: list[str | int | float | bool]
    more: bool


class BundleInfo(msgspec.Struct, frozen=True, array_like=True):
    """Description of the opened bundle, sent by a ready engine."""

    labels: int
    dim: int
    bytes_per_token: float
    max_tokens: int
    padded: bool
    worker_threads: int
    seconds: float
    weight: float  # default weight of the classifier
    attributes: list[FilterAttribute]
    query_identity: int = 0  # version of the function that is applied to texts before the tokenizer
    memory_weight: float | None = None  # default weight of the votes; None without a query memory
    fixed_weight: bool = False  # the bundle has one head only, so no other weight is accepted


ENCODER = msgspec.msgpack.Encoder()
_BATCH = msgspec.msgpack.Decoder(Batch)
_ANSWERS = msgspec.msgpack.Decoder(BatchAnswers)
_PART = msgspec.msgpack.Decoder(AnswerPart)
_INFO = msgspec.msgpack.Decoder(BundleInfo)
_IDS = msgspec.msgpack.Decoder(list[str])


class Readable(Protocol):
    """A source of frames: `read` waits for `size` bytes and returns fewer only at the end of the stream."""

    def read(self, size: int, /) -> bytes: ...


def encode_frame(kind: FrameKind, payload: bytes) -> bytes:
    """Return a frame with this payload."""
    return HEAD.pack(len(payload), kind) + payload


def read_frame(source: Readable) -> tuple[FrameKind, bytes] | None:
    """Read the next frame; return None at the end of the stream. Raises ValueError when the stream is out of step."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    size, kind = _checked(*HEAD.unpack(head))
    payload = source.read(size)
    return (kind, payload) if len(payload) == size else None


class FrameSplitter:
    """Split a stream that arrives in arbitrary chunks into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[FrameKind, bytes]]:
        """Yield every frame that `data` completes. Raises ValueError when the stream is out of step."""
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


class AnswerParts:
    """Join the parts of answers that are too large for one frame."""

    def __init__(self, limit: int = MAX_PART_BYTES) -> None:
        """Hold at most `limit` bytes."""
        self._parts: dict[tuple[int, int], list[bytes]] = {}  # (batch number, place of the query) → its parts
        self._limit = limit
        self.held_bytes = 0

    def add(self, part: AnswerPart) -> None:
        """Store one part. Raises ValueError when there are too many bytes."""
        self.held_bytes += PART_OVERHEAD + len(part.data)
        if self.held_bytes > self._limit:
            raise ValueError(f"parts of answers with more than {self._limit} bytes: the engine is out of step")
        self._parts.setdefault((part.number, part.place), []).append(part.data)

    def complete(self, batch: BatchAnswers) -> BatchAnswers:
        """Return the answers with the parts that were received before them."""
        if not self._parts:
            return batch
        answers = []
        for place, (outcome, body) in enumerate(batch.answers):
            parts = self._parts.pop((batch.number, place), [])
            self.held_bytes -= sum(PART_OVERHEAD + len(part) for part in parts)
            answers.append(QueryAnswer(outcome, b"".join([*parts, body])))
        return BatchAnswers(batch.number, batch.stages, answers)


def encode_batch(number: int, queries: list[Query]) -> bytes:
    """Return the BATCH frame."""
    return encode_frame(FrameKind.BATCH, ENCODER.encode(Batch(number, queries)))


def decode_batch(payload: bytes) -> Batch:
    """Return the queries of a BATCH frame."""
    return _BATCH.decode(payload)


def encode_answers(batch: BatchAnswers, part_bytes: int = PART_BYTES) -> Iterator[bytes]:
    """Yield a PART frame for each `part_bytes` of a larger answer, then the ANSWERS frame."""
    if any(len(answer.body) > part_bytes for answer in batch.answers):
        rest = []
        for place, (outcome, body) in enumerate(batch.answers):
            last = max(len(body) - 1, 0) // part_bytes * part_bytes
            for start in range(0, last, part_bytes):
                part = AnswerPart(batch.number, place, body[start : start + part_bytes])
                yield encode_frame(FrameKind.PART, ENCODER.encode(part))
            rest.append(QueryAnswer(outcome, body[last:]))
        batch = BatchAnswers(batch.number, batch.stages, rest)
    yield encode_frame(FrameKind.ANSWERS, ENCODER.encode(batch))


def decode_answers(payload: bytes) -> BatchAnswers:
    """Return the answers of an ANSWERS frame."""
    return _ANSWERS.decode(payload)


def decode_part(payload: bytes) -> AnswerPart:
    """Return the content of a PART frame."""
    return _PART.decode(payload)


def encode_info(info: BundleInfo) -> bytes:
    """Return the READY frame."""
    return encode_frame(FrameKind.READY, ENCODER.encode(info))


def decode_info(payload: bytes) -> BundleInfo:
    """Return the content of a READY frame."""
    return _INFO.decode(payload)


def encode_paused(ids: Sequence[str]) -> bytes:
    """Return a PAUSED frame."""
    return encode_frame(FrameKind.PAUSED, ENCODER.encode(ids))


def decode_paused(payload: bytes) -> list[str]:
    """Return the ids of a PAUSED frame."""
    return _IDS.decode(payload)


def _checked(size: int, kind: int) -> tuple[int, FrameKind]:
    if size > MAX_PAYLOAD:
        raise ValueError(f"a frame of {size} bytes: the stream is out of step")
    return size, FrameKind(kind)
