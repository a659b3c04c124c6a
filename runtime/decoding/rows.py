"""Many answers over one model, a row of its cache each: a step moves all of them on by a token.

Answers join and leave between steps. Prompts are read one at a time, one a step, so that answers
under way wait for no more than that. An answer that is alone may draft; beside others it does not,
since a call takes one token of each row.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ..session.protocol import Session
from .answer import Answer, Append, Completion, Piece, Prefix, Wish, fulfil

K = TypeVar("K")


class Seat:
    """An answer in its row; `wish` is what it waits for, `ended` whether nothing more comes."""

    def __init__(self, answer: Answer, session: Session, rows: "Rows") -> None:
        self.session = session
        self.steps = answer.steps(session, lambda: len(rows.seats) == 1)
        self.wish: Wish | None = None
        self.ended = False


Event = tuple[Seat, Piece | Exception]


class Rows:
    """Up to `len(sessions)` answers at once. `interrupt` alone may be called by other threads."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.count, self.seats = len(sessions), list[Seat]()
        self.sessions, self.tokens = tuple(sessions), [0] * len(sessions)  # made by each
        self._free = list(sessions)  # those that were left first come first
        self._lock = threading.Lock()
        self._calling: Seat | None = None  # the one seat that the call under way is for

    @property
    def free(self) -> int:
        """Rows without an answer."""
        return len(self._free)

    def join(self, answer: Answer) -> Seat:
        """Give `answer` a free row: one that holds its prefix, or the one that was left first."""
        held = [row for row in self._free if row.prefix == answer.ids]
        session = (held or self._free)[0]
        self._free.remove(session)
        self.seats.append(Seat(answer, session, self))
        return self.seats[-1]

    def leave(self, seat: Seat) -> None:
        """End an answer, if it has not ended by itself."""
        if seat in self.seats:
            self.seats.remove(seat)
            self._free.append(seat.session)
            seat.ended = True
            seat.steps.close()

    def interrupt(self, seat: Seat) -> None:
        """End the call under way if it is for `seat` alone; its answer then ends with Cancelled."""
        with self._lock:
            if self._calling is seat:
                seat.session.cancel()

    def step(self) -> Iterator[Event]:
        """Read one prompt that waits, then move all answers on; what came of it, as it comes.

        An answer that ends, by itself or with an exception, has left when that is given.
        """
        for seat in [s for s in self.seats if s.wish is None]:
            yield from self._advance(seat, None)
        reading = next((s for s in self.seats if isinstance(s.wish, Prefix)), None)
        if reading is not None:
            yield from self._alone(reading)
        ready = [s for s in self.seats if isinstance(s.wish, Append)]
        if len(ready) > 1:
            single = [s for s in ready if s.wish and len(s.wish.ids) == 1]
            ready = [s for s in ready if s not in single]
            yield from self._together(single)
        for seat in ready:
            yield from self._alone(seat)

    def _alone(self, seat: Seat) -> Iterator[Event]:
        assert seat.wish is not None
        with self._lock:
            self._calling = seat
        try:
            logits = fulfil(seat.wish, seat.session)
        except Exception as error:
            yield from self._fail([seat], error)
            return
        finally:
            with self._lock:
                self._calling = None
        yield from self._advance(seat, logits)

    def _together(self, seats: Sequence[Seat]) -> Iterator[Event]:
        """One call with a token of each."""
        if len(seats) < 2:
            for seat in seats:
                yield from self._alone(seat)
            return
        tokens = [seat.wish.ids[0] for seat in seats if seat.wish]
        try:
            logits = seats[0].session.decode_rows([seat.session for seat in seats], tokens)
        except Exception as error:
            yield from self._fail(seats, error)
            return
        for seat, row in zip(seats, logits, strict=True):
            yield from self._advance(seat, row[None])

    def _advance(self, seat: Seat, logits: np.ndarray | None) -> Iterator[Event]:
        """Send what `seat` waited for, and give its pieces up to its next wish."""
        sent = logits
        while seat in self.seats:
            try:
                step = seat.steps.send(sent)
            except Exception as error:  # StopIteration too: the last piece comes before it
                yield from self._fail([seat], error)
                return
            if not isinstance(step, Piece):
                seat.wish = step
                return
            self.tokens[self.sessions.index(seat.session)] += 1
            if step.finish_reason:
                self.leave(seat)
            yield seat, step
            sent = None

    def _fail(self, seats: Sequence[Seat], error: Exception) -> Iterator[Event]:
        for seat in seats:
            self.leave(seat)
            yield seat, error


def together(
    rows: Rows, asked: Iterable[tuple[K, Answer]]
) -> Iterator[tuple[K, Completion | Exception]]:
    """Every answer as soon as it is whole, or what it failed with; nothing else may use `rows`."""
    source, under_way = iter(asked), dict[Seat, tuple[K, list[Piece]]]()
    more = True
    try:
        while more or under_way:
            while more and rows.free:
                try:
                    key, answer = next(source)
                except StopIteration:
                    more = False
                    break
                under_way[rows.join(answer)] = key, []
            for seat, item in rows.step():
                key, pieces = under_way[seat]
                if isinstance(item, Exception):
                    del under_way[seat]
                    yield key, item
                    continue
                pieces.append(item)
                if item.finish_reason:
                    del under_way[seat]
                    yield key, Completion.of(pieces)
    finally:
        for seat in under_way:
            rows.leave(seat)
