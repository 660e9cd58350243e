"""Messages between front and engine."""

import io
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.protocol import (
    HEAD,
    MAX_PAYLOAD,
    PART_OVERHEAD,
    AnswerPart,
    AnswerParts,
    BatchAnswers,
    FrameKind,
    FrameSplitter,
    Outcome,
    Query,
    QueryAnswer,
    Stages,
    decode_answers,
    decode_batch,
    decode_part,
    encode_answers,
    encode_batch,
    encode_frame,
    read_frame,
)

NO_TIME = Stages(0, 0, 0, 0, 0, 0, 0)


def received(stream: bytes) -> list[BatchAnswers]:
    """Return the answers that a front reads from a stream."""
    parts, batches = AnswerParts(), []
    for kind, payload in FrameSplitter().feed(stream):
        if kind is FrameKind.PART:
            parts.add(decode_part(payload))
        else:
            batches.append(parts.complete(decode_answers(payload)))
    assert parts.held_bytes == 0
    return batches


def test_a_batch_survives_the_wire() -> None:
    """Texts, k or weight would reach the engine changed."""
    queries = [Query.create(['quote " and \\', "naïve 北京 🛒", "\u0000"], 3), Query.create(["b"], 10, 0.25)]
    queries += [Query.create(["c"], 5, memory_weight=0.5, supporting=2)]
    kind, payload = read_frame(io.BytesIO(encode_batch(7, queries))) or pytest.fail("no frame")
    batch = decode_batch(payload)
    assert (kind, batch.number, batch.queries) == (FrameKind.BATCH, 7, queries)


def test_training_queries_of_a_hit_cost_like_hits() -> None:
    """A caller could ask for ten training queries per hit and occupy the engine for several times its share."""
    assert Query.create(["a"], 10).hits_per_text == 10
    assert Query.create(["a"], 10, supporting=3).hits_per_text == 40


def test_a_filter_survives_the_wire() -> None:
    """A filter with a value that MessagePack or JSON does not have would fail the request, or match other labels."""
    values = [10**30, -(2**63) - 1, float("inf"), True, 1, 1.0, "é"]
    query = Query.create(["a"], 3, None, {"market": values}, 0.5)
    (decoded,) = decode_batch(encode_batch(1, [query])[HEAD.size :]).queries
    assert decoded.filter is not None
    assert [(type(value), value) for value in decoded.filter["market"]] == [(type(value), value) for value in values]
    assert decoded.options == query.options


def test_answers_survive_the_wire() -> None:
    """Results would be returned to the wrong request, or a refusal would look like an answer."""
    answers = [
        QueryAnswer(Outcome.ANSWERED, b'{"a":1}'),
        QueryAnswer(Outcome.REFUSED, "é".encode()),
        QueryAnswer(Outcome.BROKEN),
    ]
    batch = BatchAnswers(9, Stages(0.5, 0.25, 0.125, 0.0, 1.0, 7, 3, 2), answers)
    assert received(b"".join(encode_answers(batch))) == [batch]


@pytest.mark.parametrize("payload", [b"", b"\xff", msgspec.msgpack.encode([1, "not a list"])])
def test_a_payload_of_another_type_is_an_error(payload: bytes) -> None:
    """A faulty engine would cause an error in the front long after the faulty message."""
    with pytest.raises(msgspec.DecodeError):
        decode_answers(payload)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 7))
def test_chunks_of_any_size_make_the_same_frames(payloads: list[bytes], size: int) -> None:
    """A frame split or joined by the socket would be lost or read as two."""
    stream = b"".join(encode_frame(FrameKind.ANSWERS, payload) for payload in payloads)
    splitter = FrameSplitter()
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [payload for chunk in chunks for _, payload in splitter.feed(chunk)] == payloads


@pytest.mark.parametrize("head", [HEAD.pack(MAX_PAYLOAD + 1, FrameKind.BATCH), HEAD.pack(1, 99)])
def test_a_stream_out_of_step_is_an_error(head: bytes) -> None:
    """An invalid length would make either side wait for, or allocate, gigabytes."""
    with pytest.raises(ValueError, match=r"out of step|99"):
        list(FrameSplitter().feed(head))


@pytest.mark.parametrize("cut", [0, 3, HEAD.size, HEAD.size + 2])
def test_the_end_of_the_stream_is_no_error(cut: int) -> None:
    """An engine whose front has died would fail with a traceback instead of ending."""
    assert read_frame(io.BytesIO(encode_frame(FrameKind.BATCH, b"[1]")[:cut])) is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 7), st.randoms())
def test_large_answers_are_sent_in_several_frames(sizes: list[int], part_bytes: int, random_: random.Random) -> None:
    """An answer of a few megabytes would exceed the frame limit, which ends the engine, or be reassembled wrongly."""
    batch = BatchAnswers(7, NO_TIME, [QueryAnswer(Outcome.ANSWERED, random_.randbytes(size)) for size in sizes])
    frames = list(encode_answers(batch, part_bytes))
    assert max(map(len, frames[:-1]), default=0) <= part_bytes + 20
    assert len(frames) == 1 + sum(max(size - 1, 0) // part_bytes for size in sizes)
    assert received(b"".join(frames)) == [batch]


@pytest.mark.parametrize("data", [b"", b"x" * 50])
def test_parts_without_their_answers_are_bounded(data: bytes) -> None:
    """A compromised engine could fill the memory of the front."""
    parts = AnswerParts(limit=2 * (PART_OVERHEAD + len(data)))
    parts.add(AnswerPart(1, 0, data))
    parts.add(AnswerPart(1, 0, data))
    with pytest.raises(ValueError, match="parts of answers with more than"):
        parts.add(AnswerPart(1, 0, data))


def test_the_number_of_a_batch_may_be_large() -> None:
    """An engine that has answered four billion batches would fail on every later one."""
    batch = BatchAnswers(1 << 32, NO_TIME, [QueryAnswer(Outcome.ANSWERED, b"x" * 5)])
    assert received(b"".join(encode_answers(batch, part_bytes=2))) == [batch]
