"""Requests in fair order: a thread owns the model's rows, and clients take turns for them.

Knows answers and their pieces; nothing of HTTP.
"""

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hrm_edge.errors import HRMEdgeError

from ..decoding.answer import Answer, Piece
from ..decoding.rows import Rows, Seat

logger = logging.getLogger("hrm_edge.server")
END = object()
OUTCOMES = ("accepted", "refused", "finished", "cancelled", "failed")
INTERRUPT_SECONDS = 0.05  # after which a running job that was cancelled is interrupted again
STOP_SECONDS = 5.0  # within which a step ends that was interrupted


class QueueFull(Exception):
    """No place in the queue."""


class ShuttingDown(Exception):
    """The server takes or finishes no more work."""


class FairQueue:
    """First in, first out for each client; clients take turns. Not for several threads at once."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._size = 0  # kept, so that any thread may ask for it

    def __len__(self) -> int:
        return self._size

    def push(self, job: "Job") -> None:
        """Append `job` to its client's line; a new client comes last."""
        self._waiting.setdefault(job.client, deque()).append(job)
        self._size += 1

    def pop(self) -> "Job":
        """The next client's oldest job; that client then comes last."""
        client, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        self._size -= 1
        if jobs:
            self._waiting[client] = jobs
        return job

    def remove(self, job: "Job") -> bool:
        """Take `job` out; False if it is not waiting."""
        jobs = self._waiting.get(job.client, deque())
        if job not in jobs:
            return False
        jobs.remove(job)
        self._size -= 1
        if not jobs:
            del self._waiting[job.client]
        return True


@dataclass(frozen=True)
class Part:
    """A piece of the answer with number `index`."""

    index: int
    piece: Piece


class Job:
    """An accepted request: a row computes `answers`, one after the other; a loop reads the parts.

    Nothing of it is computed for a job that was `cancelled`.
    """

    def __init__(self, client: str, answers: Iterable[Answer]) -> None:
        self.client, self.cancelled = client, False
        self.answers = enumerate(answers)
        self.index = 0  # of the answer under way
        self.seat: Seat | None = None
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue[Any]()

    async def items(self, patience: float) -> AsyncIterator[Any]:
        """Yield what the work yields, and None whenever nothing came for `patience` seconds.

        Raises what the work raised.
        """
        while True:
            try:
                async with asyncio.timeout(patience):  # 3.11's wait_for can lose a cancellation
                    item = await self._items.get()
            except TimeoutError:
                item = None
            if item is END:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def deliver(self, item: Any) -> None:
        """Hand over an item from any thread; lost if the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            self.cancelled = True

    def later(self, seconds: float, action: Callable[["Job"], None]) -> None:
        """Call `action` with this job from its event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, action, self)


class Worker:
    """The thread that runs jobs, as many at once as there are rows and at most `limit` waiting.

    Counts what became of them.
    """

    def __init__(self, limit: int, rows: Rows) -> None:
        self.limit, self.rows = limit, rows
        self.running: list[Job] = []
        self.counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._queue, self._change, self._open = FairQueue(), threading.Condition(), True
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        with self._change:
            return not self.running and not len(self._queue)

    @property
    def open(self) -> bool:
        """Whether jobs are taken."""
        return self._open

    def submit(self, client: str, answers: Iterable[Answer]) -> Job:
        """Queue `answers` for `client`. Raises QueueFull or ShuttingDown."""
        job = Job(client, answers)
        with self._change:
            self.check()
            self.counts["accepted"] += 1
            self._queue.push(job)
            self._change.notify_all()
        return job

    def check(self) -> None:
        """Raise QueueFull or ShuttingDown if a job would be refused now."""
        if not self._open:
            raise ShuttingDown
        if self.queued >= self.limit:
            self.counts["refused"] += 1
            raise QueueFull

    def cancel(self, job: Job) -> None:
        """Drop `job` if it waits, stop it if it runs: after the call under way, or within its own.

        A call that is for others too goes on.
        """
        with self._change:
            job.cancelled = True
            if self._queue.remove(job):
                self.counts["cancelled"] += 1
            elif job in self.running:
                if job.seat is not None:
                    self.rows.interrupt(job.seat)
                job.later(INTERRUPT_SECONDS, self.cancel)  # between two calls it went unheard

    def close(self) -> None:
        """Take no more jobs and refuse the waiting ones; the running ones go on."""
        with self._change:
            self._open = False
            while len(self._queue):
                self.counts["cancelled"] += 1
                self._queue.pop().deliver(ShuttingDown())
            self._change.notify_all()

    def finish(self, seconds: float) -> bool:
        """After `close`: give running jobs `seconds`, then stop them. False if one won't stop."""
        self._thread.join(seconds)
        with self._change:
            left = list(self.running)
        for job in left:
            job.deliver(ShuttingDown())
            self.cancel(job)
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._seated():
            for seat, item in self.rows.step():
                job = next(job for job in self.running if job.seat is seat)
                self._pass_on(job, item)

    def _seated(self) -> bool:
        """Wait until there is something to compute, in its row; False if there never will be."""
        with self._change:
            for job in [job for job in self.running if job.cancelled]:
                self._end(job, "cancelled")
            self._change.wait_for(lambda: self.running or len(self._queue) or not self._open)
            while len(self._queue) and self.rows.free:
                job = self._queue.pop()
                self.running.append(job)
                self._next(job)
            return bool(self.running) or self._open or len(self._queue) > 0

    def _pass_on(self, job: Job, item: Piece | Exception) -> None:
        assert job.seat is not None
        if job.cancelled:
            return
        if isinstance(item, Exception):
            if not isinstance(item, HRMEdgeError):
                logger.error("a generation failed", exc_info=item)
            job.deliver(item)
            self._end(job, "failed")
            return
        job.deliver(Part(job.index, item))
        if job.seat.ended:
            self._next(job)

    def _next(self, job: Job) -> None:
        """Begin the next answer of `job`, or end it."""
        try:
            job.index, answer = next(job.answers)
        except StopIteration:
            self._end(job, "finished")
            return
        job.seat = self.rows.join(answer)

    def _end(self, job: Job, outcome: str) -> None:
        with self._change:
            if job.seat is not None:
                self.rows.leave(job.seat)
            self.running.remove(job)
            self.counts[outcome] += 1
        job.deliver(END)
