"""Bounded admission and work-conserving batches.

There is no delay timer: an idle engine gets what waits at once, and while it works the next batch forms. Requests take
turns, a piece at a time, so a large one cannot block small ones, and the first in line always goes; where an encoder
pads texts to the longest of a batch, only texts of its length go with it. Whoever has been answered, has passed the
deadline or has hung up leaves the queue on the spot.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from time import perf_counter
from typing import NamedTuple

from service import errors
from service.errors import Refusal
from service.frames import Answers, Asked, Outcome, Stages, pack_batch
from service.metrics import Metrics
from service.pace import Pace
from service.settings import Settings

SPECIAL_TOKENS = 2  # most tokenizers add one at each end
DEATHS_ALLOWED = 1
SHORT = 8  # tokens; below, padding costs next to nothing
LOOKED_AT = 256  # requests in line, for texts of one length


class Lengths(NamedTuple):
    """What a bundle's encoder makes of texts: tokens of a byte, the most of a text, whether a batch is padded."""

    tokens_per_byte: float
    most: int
    padded: bool

    def tokens(self, query: str) -> int:
        """About how many tokens a text has."""
        return min(SPECIAL_TOKENS + int(self.tokens_per_byte * len(query.encode())), self.most)


class Ticket:
    """One admitted request, from admission to its answer. Await `answer`: the results' JSON, or a Refusal is raised."""

    __slots__ = (
        "answer", "arrived", "asked", "batcher", "begun", "deaths", "missing", "parts", "seconds", "stages", "timer",
        "todo", "tokens",
    )  # fmt: skip

    def __init__(self, asked: Asked, seconds: float, batcher: "Batcher", loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asked
        self.seconds = seconds
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.arrived = self.begun = perf_counter()  # a loop's own clock may tick in milliseconds
        self.stages: Stages | None = None
        self.deaths = 0
        self.begin(batcher)
        self.timer = loop.call_later(seconds, self._too_late)

    def begin(self, batcher: "Batcher") -> None:
        """Start, or start anew with another bundle: what the former one answered is forgotten."""
        count = len(self.asked.queries)
        self.batcher = batcher
        self.tokens = [batcher.lengths.tokens(query) for query in self.asked.queries]
        self.todo = [(0, count)]  # spans of queries that no engine is working on
        self.parts: list[bytes | None] = [None] * count
        self.missing = count

    @property
    def bundle(self) -> str:
        """The bundle that answers it, the whole of it."""
        return self.batcher.bundle

    def abandon(self) -> None:
        """Nobody waits for this answer any more."""
        self.batcher.abandon(self)

    def _too_late(self) -> None:
        self.batcher.too_late(self)

    def cut(self, queries: int, tokens: int, length: int | None = None) -> tuple[int, int]:
        """Take the next span, of at most `queries` and `tokens`, all of one `length` class; empty when none fits."""
        start, stop = self.todo[0]
        end = start
        while end < min(stop, start + queries) and self.tokens[end] <= tokens:
            if length is not None and _class(self.tokens[end]) != length:
                break
            tokens -= self.tokens[end]
            end += 1
        if end == stop:
            del self.todo[0]
        else:
            self.todo[0] = (end, stop)
        return start, end


class Piece(NamedTuple):
    """A span of one request's texts, inside a batch."""

    ticket: Ticket
    start: int
    stop: int

    def asked(self) -> Asked:
        return self.ticket.asked._replace(queries=self.ticket.asked.queries[self.start : self.stop])


class Batcher:
    """The requests of one generation: those that wait, and those an engine is working on."""

    def __init__(self, bundle: str, settings: Settings, metrics: Metrics, lengths: Lengths) -> None:
        self.bundle = bundle
        self.lengths = lengths
        self._lanes = 1  # batches that its engine works on at a time
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[int, Ticket] = OrderedDict()  # by id(), since a ticket may leave from the middle
        self._in_flight: OrderedDict[int, list[Piece]] = OrderedDict()  # by number, the oldest first
        self._send: Callable[[bytes], None] | None = None
        self._number = 0  # of the last batch sent
        self._idle = asyncio.Event()
        self._idle.set()
        self._pace = Pace()
        self._room = settings.max_waiting_queries  # texts that may wait at the engine's pace
        self.unfinished = 0
        self.waiting_queries = 0
        self.waiting_tokens = 0

    @property
    def oldest(self) -> int | None:
        """The number of the batch whose answer has been due for longest; None when none is."""
        return next(iter(self._in_flight), None)

    def admit(self, asked: Asked, seconds: float | None = None) -> Ticket:
        """Queue a request; it is sent at once when the engine has room. Raises Refusal 429."""
        self._refuse_overload(asked.queries)
        deadline = self._settings.deadline_seconds
        ticket = Ticket(asked, min(seconds or deadline, deadline), self, self._loop)
        self._queue(ticket)
        self._feed()
        return ticket

    def hand_over(self) -> list[Ticket]:
        """Give every unfinished request away, the first in line first."""
        flying = [piece.ticket for batch in self._in_flight.values() for piece in batch if self._mine(piece)]
        tickets = list({id(ticket): ticket for ticket in [*flying, *self._waiting.values()]}.values())
        for ticket in tickets:
            self._forget(ticket)
        return tickets

    def take_over(self, tickets: Iterable[Ticket]) -> None:
        """Answer another bundle's unfinished requests, from their beginning: no answer mixes two bundles."""
        for ticket in tickets:
            ticket.begin(self)
            self._queue(ticket)
        self._lose_pace()
        self._feed()

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more: its client has gone."""
        self._metrics.rejections.labels("abandoned").inc()
        self._finish(ticket, Refusal(499, "abandoned", "The client closed the connection."))

    def too_late(self, ticket: Ticket) -> None:
        """The deadline has passed."""
        if not ticket.answer.done():
            self._metrics.rejections.labels("too_late").inc()
            self._finish(ticket, errors.too_late(ticket.seconds, ticket.seconds < self._settings.deadline_seconds))

    def attach(self, send: Callable[[bytes], None], lanes: int) -> None:
        """An engine is ready, with so many lanes: give it what waits."""
        self._send, self._lanes = send, lanes
        self._feed()

    def lost(self) -> None:
        """The engine died: what it had goes back to the head of the queue, for its replacement.

        Only the oldest batches can be the cause, one for each lane, because a lane reads the next one after answering
        the last. Their requests are sent alone from then on, with no other batch beside them, so that a request which
        kills engines takes no other down with it.
        """
        self._send = None
        self._lose_pace()
        if not self._in_flight:
            return
        worked_on = chain.from_iterable(islice(self._in_flight.values(), self._lanes))
        suspects = {id(piece.ticket): piece.ticket for piece in worked_on if self._mine(piece)}
        for batch in reversed(self._in_flight.values()):
            for piece in reversed(batch):
                self._put_back(piece)
        self._in_flight.clear()
        for ticket in suspects.values():
            ticket.deaths += 1
            if ticket.deaths > DEATHS_ALLOWED:
                self._finish(ticket, errors.broken())

    def answered(self, answers: Answers) -> None:
        """Hand a batch's answers to its requests. Raises ValueError when the engine answers out of turn."""
        due = list(islice(self._in_flight, self._lanes))
        if answers.number not in due or len(answers.pieces) != len(self._in_flight[answers.number]):
            raise ValueError(f"the engine answered batch {answers.number} where {_either(due)} was due")
        batch = self._in_flight.pop(answers.number)
        self._feed()  # first of all, so the engine works while the answers go out
        texts = sum(piece.stop - piece.start for piece in batch)
        self._metrics.batch(texts, answers.stages)
        now = perf_counter()
        if self._pace.answered(texts, bool(self._waiting), now):
            self._make_room()
        for piece, (outcome, body) in zip(batch, answers.pieces, strict=True):
            if self._mine(piece):
                piece.ticket.begun = now - answers.stages.total  # in the pipe it still waited
                self._deliver(piece, outcome, body, answers.stages)

    async def drained(self) -> None:
        """Return when no admitted request is unanswered; each has a deadline, so this ends."""
        await self._idle.wait()

    def give_up(self, why: Refusal) -> None:
        """Answer every unfinished request with `why`."""
        for ticket in self.hand_over():
            self._settle(ticket, why)

    def take(self) -> list[Piece]:
        """The next batch: a piece of each request in turn until it is full. Empty when nothing waits."""
        if not self._waiting:
            return []
        first = next(iter(self._waiting.values()))
        length = _class(first.tokens[first.todo[0][0]]) if self.lengths.padded else None
        pieces: list[Piece] = []
        queries, tokens = self._settings.max_batch_queries, self._settings.max_batch_tokens
        looking = True
        while looking and queries:  # once around the line, and again while it gave something
            looking = False
            for ticket in list(islice(self._waiting.values(), LOOKED_AT)):
                if ticket.deaths and pieces:
                    return pieces
                piece = self._cut(ticket, queries, tokens, length, first=not pieces)
                if piece is None and length is None:
                    return pieces
                if piece is None:
                    continue
                looking = True
                pieces.append(piece)
                queries -= piece.stop - piece.start
                tokens -= self._waits(ticket, piece.start, piece.stop, -1)
                if ticket.deaths or not queries:
                    return pieces
        return pieces

    def _cut(self, ticket: Ticket, queries: int, tokens: int, length: int | None, first: bool) -> Piece | None:
        """A request's next piece, if it fits; what is left of the request goes to the end of the line."""
        start, stop = ticket.cut(min(queries, self._settings.max_piece_queries), tokens, length)
        if start == stop and not first:
            return None
        if start == stop:
            start, stop = ticket.cut(1, ticket.tokens[start])  # a text larger than a whole batch goes by itself
        if ticket.todo:
            self._waiting.move_to_end(id(ticket))
        else:
            del self._waiting[id(ticket)]
        return Piece(ticket, start, stop)

    def _feed(self) -> None:
        while self._send and self._may_send() and (pieces := self.take()):
            self._number += 1
            self._in_flight[self._number] = pieces
            self._send(pack_batch(self._number, [piece.asked() for piece in pieces]))

    def _may_send(self) -> bool:
        """Whether the engine has room for a batch; a suspect is answered with nothing else there to be blamed."""
        if not self._in_flight or not self._waiting:
            return True
        next_in_line, flying = next(iter(self._waiting.values())), next(reversed(self._in_flight.values()))
        if next_in_line.deaths or flying[0].ticket.deaths:
            return False
        return len(self._in_flight) < self._lanes + self._settings.batches_ahead

    def _deliver(self, piece: Piece, outcome: Outcome, body: bytes, stages: Stages) -> None:
        ticket = piece.ticket
        if outcome is Outcome.REFUSED:
            self._finish(ticket, Refusal(422, "bad_query", body.decode()))
        elif outcome is Outcome.BROKEN:
            self._finish(ticket, errors.broken())
        else:
            ticket.parts[piece.start] = body
            ticket.missing -= piece.stop - piece.start
            ticket.stages = stages
            if not ticket.missing:
                self._finish(ticket, None)

    def _finish(self, ticket: Ticket, refusal: Refusal | None) -> None:
        if not ticket.answer.done():
            self._forget(ticket)
            self._settle(ticket, refusal)

    @staticmethod
    def _settle(ticket: Ticket, refusal: Refusal | None) -> None:
        ticket.timer.cancel()
        if refusal and ticket.stages is None:
            ticket.begun = perf_counter()  # all that it did was wait
        if refusal:
            ticket.answer.set_exception(refusal)
        else:
            ticket.answer.set_result(b",".join(part for part in ticket.parts if part is not None))

    def _queue(self, ticket: Ticket) -> None:
        self.unfinished += 1
        self._idle.clear()
        self._waiting[id(ticket)] = ticket
        self._waits(ticket, 0, len(ticket.tokens), +1)

    def _forget(self, ticket: Ticket) -> None:
        for start, stop in ticket.todo:
            self._waits(ticket, start, stop, -1)
        ticket.todo.clear()
        self._waiting.pop(id(ticket), None)
        self.unfinished -= 1
        if not self.unfinished:
            self._idle.set()

    def _mine(self, piece: Piece) -> bool:
        """Whether a piece's request still waits, and for this bundle."""
        return piece.ticket.batcher is self and not piece.ticket.answer.done()

    def _put_back(self, piece: Piece) -> None:
        ticket = piece.ticket
        if not self._mine(piece):
            return
        ticket.todo.insert(0, (piece.start, piece.stop))
        self._waits(ticket, piece.start, piece.stop, +1)
        self._waiting[id(ticket)] = ticket
        self._waiting.move_to_end(id(ticket), last=False)

    def _waits(self, ticket: Ticket, start: int, stop: int, sign: int) -> int:
        """Count a span in or out of what waits; return its tokens."""
        tokens = sum(ticket.tokens[start:stop])
        self.waiting_queries += sign * (stop - start)
        self.waiting_tokens += sign * tokens
        return tokens

    @property
    def full(self) -> bool:
        """Whether no text at all can be admitted."""
        return self.waiting_queries >= self._room

    def _make_room(self) -> None:
        """As many texts may wait as are answered in the time that they may wait, and the largest request always."""
        settings = self._settings
        room = settings.max_waiting_queries
        if self._pace.rate is not None:
            room = min(room, max(round(self._pace.rate * settings.max_waiting_seconds), settings.max_queries))
        self._room = room

    def _lose_pace(self) -> None:
        self._pace.forget()
        self._make_room()

    def _refuse_overload(self, texts: Sequence[str]) -> None:
        settings = self._settings
        if self.waiting_queries + len(texts) > self._room:
            self._metrics.rejections.labels("queue_full").inc()
            raise errors.overloaded(f"{self.waiting_queries} texts")
        if not self.waiting_queries:
            return
        tokens = sum(map(self.lengths.tokens, texts))
        if self.waiting_tokens + tokens > settings.max_waiting_tokens:
            self._metrics.rejections.labels("queue_full").inc()
            raise errors.overloaded(f"{self.waiting_tokens} tokens")


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers)) or "none"


def _class(tokens: int) -> int:
    """Texts of one class are alike in length: the longest of them is less than twice as long as the shortest."""
    return max(tokens, SHORT).bit_length()
