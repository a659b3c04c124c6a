"""One generation at a time, in fair order: a thread owns the model, clients take turns.

Knows iterators of items; nothing of HTTP or of what the items are.
"""

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from hrm_edge.errors import HRMEdgeError

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


class Job:
    """An accepted request: `work` is run by the worker, its items are read in an event loop."""

    def __init__(self, client: str, work: Iterator[Any]) -> None:
        self.client, self.work, self.cancelled = client, work, False
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
    """The thread that runs jobs, at most `limit` waiting. Counts what became of them."""

    def __init__(self, limit: int, interrupt: Callable[[], None]) -> None:
        """`interrupt` is called from another thread to end the running job's current step."""
        self.limit, self._interrupt = limit, interrupt
        self.running: Job | None = None
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
            return self.running is None and not len(self._queue)

    @property
    def open(self) -> bool:
        """Whether jobs are taken."""
        return self._open

    def submit(self, client: str, work: Iterator[Any]) -> Job:
        """Queue `work` for `client`. Raises QueueFull or ShuttingDown."""
        job = Job(client, work)
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
        """Drop `job` if it waits, stop it if it runs."""
        with self._change:
            job.cancelled = True
            if self._queue.remove(job):
                self.counts["cancelled"] += 1
            elif job is self.running:
                self._interrupt()
                job.later(INTERRUPT_SECONDS, self.cancel)  # between two steps it went unheard

    def close(self) -> None:
        """Take no more jobs and refuse the waiting ones; the running one goes on."""
        with self._change:
            self._open = False
            while len(self._queue):
                self.counts["cancelled"] += 1
                self._queue.pop().deliver(ShuttingDown())
            self._change.notify_all()

    def finish(self, seconds: float) -> bool:
        """After `close`: give the running job `seconds`, then stop it. False if it won't stop."""
        self._thread.join(seconds)
        with self._change:
            job = self.running
        if job is not None:
            job.deliver(ShuttingDown())
            self.cancel(job)
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            outcome = "failed"
            try:
                outcome = _run_job(job)
            finally:
                with self._change:
                    self.counts[outcome] += 1
                    self.running = None

    def _next(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: len(self._queue) or not self._open)
            self.running = self._queue.pop() if len(self._queue) else None
            return self.running


def _run_job(job: Job) -> str:
    """Run `job` to its end; what became of it."""
    try:
        for item in job.work:
            if job.cancelled:
                break
            job.deliver(item)
        return "cancelled" if job.cancelled else "finished"
    except Exception as error:
        if job.cancelled:
            return "cancelled"
        if not isinstance(error, HRMEdgeError):
            logger.exception("a generation failed")
        job.deliver(error)
        return "failed"
    finally:
        close = getattr(job.work, "close", None)
        if close is not None:
            close()
        job.deliver(END)
