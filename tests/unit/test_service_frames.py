"""The wire between front and engine."""

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.protocol import (
    HEAD,
    MAX_PAYLOAD,
    PART,
    Answers,
    Asked,
    Kind,
    Outcome,
    Parts,
    Splitter,
    Stages,
    frame,
    pack_answers,
    pack_batch,
    pack_parts,
    read_frame,
    unpack_answers,
    unpack_batch,
)


def test_a_batch_survives_the_wire() -> None:
    """Texts, k or weight would reach the engine changed."""
    pieces = [Asked(['quote " and \\', "naïve 北京 🛒", "\u0000"], 3, None), Asked(["b"], 10, 0.25)]
    kind, payload = read_frame(io.BytesIO(pack_batch(7, pieces))) or pytest.fail("no frame")
    assert (kind, unpack_batch(payload)) == (Kind.BATCH, (7, pieces))


def test_answers_survive_the_wire() -> None:
    """Results would reach the wrong piece, or a refusal would look like an answer."""
    pieces = [(Outcome.ANSWERED, b'{"a":1}'), (Outcome.REFUSED, "é".encode()), (Outcome.BROKEN, b"")]
    answers = Answers(9, Stages(0.5, 0.25, 0.125, 0.0, 1.0, 7, 3, 2), pieces)
    assert unpack_answers(pack_answers(answers)[HEAD.size :]) == answers


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 7))
def test_chunks_of_any_size_make_the_same_frames(payloads: list[bytes], size: int) -> None:
    """A frame split or joined by the socket would be lost or read as two."""
    stream = b"".join(frame(Kind.ANSWERS, payload) for payload in payloads)
    splitter = Splitter()
    chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
    found = [payload for chunk in chunks for _, payload in splitter.feed(chunk)]
    assert found == payloads


@pytest.mark.parametrize("head", [HEAD.pack(MAX_PAYLOAD + 1, Kind.BATCH), HEAD.pack(1, 99)])
def test_a_stream_out_of_step_is_an_error(head: bytes) -> None:
    """Garbage lengths would make either side wait for, or allocate, gigabytes."""
    with pytest.raises(ValueError, match=r"out of step|99"):
        list(Splitter().feed(head))


@pytest.mark.parametrize("cut", [0, 3, HEAD.size, HEAD.size + 2])
def test_a_stream_that_ends_is_the_end(cut: int) -> None:
    """An engine whose front has died would fail with a traceback instead of ending."""
    assert read_frame(io.BytesIO(frame(Kind.BATCH, b"[1]")[:cut])) is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 7), st.randoms())
def test_large_pieces_go_in_several_frames(sizes: list[int], most: int, drawing: random.Random) -> None:
    """An answer of a few megabytes would be one frame above the limit, which ends the engine; or come out mixed up."""
    pieces = [(Outcome.ANSWERED, drawing.randbytes(size)) for size in sizes]
    answers = Answers(7, Stages(0, 0, 0, 0, 0, 0, 0), pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.engine.protocol.PART_BYTES", most)
        frames = list(pack_parts(answers))
    assert max(map(len, frames[:-1]), default=0) <= most + 20
    assert len(frames) == 1 + sum(max(size - 1, 0) // most for size in sizes)
    parts, found = Parts(), []
    for kind, payload in Splitter().feed(b"".join(frames)):
        if kind is Kind.PART:
            parts.add(payload)
        else:
            found.append(parts.complete(unpack_answers(payload)))
    assert found == [answers]
    assert not parts._parts
    assert parts._held == 0


def test_parts_without_their_answers_are_bounded() -> None:
    """A bundle that took over its engine could fill the memory of the front."""
    parts = Parts(limit=100)
    frame = PART.pack(1, 0) + b"x" * (50 - PART.size)
    parts.add(frame)
    parts.add(frame)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        parts.add(frame)


def test_the_number_of_a_batch_may_be_large() -> None:
    """An engine that has answered four billion batches would fail on each one after that."""
    pieces = [(Outcome.ANSWERED, b"x" * 5)]
    answers = Answers(1 << 32, Stages(0, 0, 0, 0, 0, 0, 0), pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.engine.protocol.PART_BYTES", 2)
        frames = b"".join(pack_parts(answers))
    parts = Parts()
    *first, (_, last) = Splitter().feed(frames)
    for _, payload in first:
        parts.add(payload)
    assert parts.complete(unpack_answers(last)) == answers
