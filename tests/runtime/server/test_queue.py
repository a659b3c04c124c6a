"""The worker: fair order, limits, cancelling, failing and closing, without HTTP or a model."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from hrm_edge.runtime.decoding.answer import Append, Piece, Prefix, Wish
from hrm_edge.runtime.decoding.rows import Rows
from hrm_edge.runtime.server.queue import Job, Part, QueueFull, ShuttingDown, Worker

pytestmark = pytest.mark.slow

Scenario = Callable[[Worker], Coroutine[Any, Any, None]]


class Row:
    """A session that computes nothing; a gate in `starts` holds the next prefix up."""

    def __init__(self, cancel: Callable[[], None] = lambda: None) -> None:
        self.prefix, self.cancel, self.starts = list[int](), cancel, list[Gate]()

    def start(self, ids: list[int], l_cycles: None) -> np.ndarray:
        for gate in self.starts:
            gate.pass_through()
        return np.zeros(1)

    def decode(self, ids: list[int]) -> np.ndarray:
        return np.zeros((len(ids), 1))

    def decode_rows(self, rows: list[Any], tokens: list[int]) -> np.ndarray:
        return np.zeros((len(rows), 1))


class Told:
    """An answer whose pieces and wishes are given."""

    ids = (1, 2)

    def __init__(self, *steps: str | Wish, work: Callable[[], Iterator[Any]] | None = None) -> None:
        self._steps = work or (lambda: iter(steps))

    def steps(self, session: Any, alone: Callable[[], bool]) -> Iterator[Any]:
        for step in self._steps():
            if isinstance(step, str):
                yield Piece(step, 0, "stop" if step.endswith(".") else None)
            else:
                yield step


def answer(*steps: str | Wish, work: Callable[[], Iterator[Any]] | None = None) -> list[Any]:
    return [Told(*steps, work=work)]


def run(scenario: Scenario, limit: int = 100, rows: int = 1) -> dict[str, int]:
    """Run `scenario` with a worker; what it counted."""
    sessions: list[Any] = [Row() for _ in range(rows)]
    worker = Worker(limit, Rows(sessions))

    async def bounded() -> None:
        await asyncio.wait_for(scenario(worker), 20)

    asyncio.run(bounded())
    worker.close()
    assert worker.finish(5)
    counts = worker.counts
    assert counts["accepted"] == counts["finished"] + counts["cancelled"] + counts["failed"]
    return counts


async def gather(job: Job) -> list[str]:
    return [item.piece.text async for item in job.items(5)]


class Gate:
    """Work that stands still until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open, self.closed = threading.Event(), threading.Event(), False

    def pass_through(self) -> None:
        self.entered.set()
        self.open.wait(10)

    def work(self) -> Iterator[str]:
        try:
            self.pass_through()
            yield "first"
            yield "second."
        finally:
            self.closed = True

    def answers(self) -> list[Any]:
        return answer(work=self.work)


async def entered(gate: Gate) -> None:
    await asyncio.to_thread(gate.entered.wait, 10)


def test_clients_take_turns() -> None:
    async def scenario(worker: Worker) -> None:
        gate, order = Gate(), list[str]()

        def work(name: str) -> Iterator[str]:
            order.append(name)
            yield "."

        jobs = [worker.submit("z", gate.answers())]
        await entered(gate)
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            jobs.append(worker.submit(name[0], answer(work=partial(work, name))))
        gate.open.set()
        await asyncio.gather(*map(gather, jobs))
        assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]

    assert run(scenario)["finished"] == 7


def test_a_full_queue_refuses_and_a_cancelled_place_is_free_again() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        first = worker.submit("a", gate.answers())
        await entered(gate)
        waiting = worker.submit("a", answer("1."))
        with pytest.raises(QueueFull):
            worker.submit("b", answer("2."))
        worker.cancel(waiting)
        assert worker.queued == 0
        second = worker.submit("b", answer("3."))
        gate.open.set()
        assert await gather(first) == ["first", "second."]
        assert await gather(second) == ["3."]

    counts = run(scenario, limit=1)
    assert (counts["finished"], counts["cancelled"], counts["refused"]) == (2, 1, 1)


def test_the_length_can_be_read_while_the_queue_changes() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    async def scenario(worker: Worker) -> None:
        jobs = []
        for i in range(600):
            jobs.append(worker.submit(f"client {i}", answer("1.")))
            for _ in range(20):
                assert 0 <= worker.queued <= 600
        await asyncio.gather(*map(gather, jobs))
        assert worker.idle

    try:
        assert run(scenario, limit=1000)["finished"] == 600
    finally:
        sys.setswitchinterval(interval)


def test_cancelling_the_running_job_closes_its_work() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        job = worker.submit("a", gate.answers())
        await entered(gate)
        worker.cancel(job)
        gate.open.set()
        assert await gather(job) == []
        assert gate.closed

    assert run(scenario)["cancelled"] == 1


def test_an_interrupt_that_goes_unheard_is_repeated() -> None:
    interrupts = list[int]()
    gate = Gate()

    def interrupt() -> None:
        interrupts.append(1)
        if len(interrupts) == 3:
            gate.open.set()

    async def scenario() -> None:
        row: Any = Row(interrupt)
        row.starts.append(gate)
        worker = Worker(1, Rows([row]))
        job = worker.submit("a", answer(Prefix([1]), "never."))
        await entered(gate)
        worker.cancel(job)
        assert await asyncio.wait_for(gather(job), 5) == []
        worker.close()

    asyncio.run(scenario())
    assert len(interrupts) >= 3


@pytest.mark.parametrize("ticks", range(4))
def test_a_reader_is_cancelled_though_an_item_comes_at_that_moment(ticks: int) -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        job = worker.submit("a", gate.answers())
        reader = asyncio.create_task(gather(job))
        await entered(gate)
        job.deliver(Part(0, Piece("item", 0)))
        for _ in range(ticks):
            await asyncio.sleep(0)
        reader.cancel()
        done, _ = await asyncio.wait({reader}, timeout=0.5)
        gate.open.set()
        assert done and reader.cancelled()

    run(scenario)


def test_a_failure_reaches_its_reader_alone() -> None:
    def broken() -> Iterator[str]:
        yield "1"
        raise ValueError("oh")

    async def scenario(worker: Worker) -> None:
        bad, good = worker.submit("a", answer(work=broken)), worker.submit("a", answer("1", "2."))
        with pytest.raises(ValueError, match="oh"):
            await gather(bad)
        assert await gather(good) == ["1", "2."]

    counts = run(scenario)
    assert (counts["failed"], counts["finished"]) == (1, 1)


def test_closing_refuses_what_waits_and_ends_what_runs() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        running = worker.submit("a", gate.answers())
        await entered(gate)
        waiting = worker.submit("a", answer("1."))
        worker.close()
        with pytest.raises(ShuttingDown):
            await gather(waiting)
        with pytest.raises(ShuttingDown):
            worker.submit("a", answer("1."))
        ending = asyncio.create_task(asyncio.to_thread(worker.finish, 0))
        with pytest.raises(ShuttingDown):
            await gather(running)
        gate.open.set()
        assert await ending

    assert run(scenario)["cancelled"] == 2


def test_an_impatient_reader_gets_none_until_something_comes() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        items: AsyncIterator[Any] = worker.submit("a", gate.answers()).items(0.02)
        assert await anext(items) is None
        gate.open.set()
        assert [i.piece.text async for i in items if i] == ["first", "second."]

    run(scenario)


def test_rows_are_answered_together_and_one_that_is_cancelled_leaves_the_others() -> None:
    """The call of a prefix is one row's own and is interrupted; one for all rows goes on."""

    async def scenario(worker: Worker) -> None:
        long = ["t", Append([1])] * 2000 + ["end."]
        jobs = [worker.submit(f"client {i}", answer(Prefix([1]), *long)) for i in range(3)]
        parts = [job.items(5) for job in jobs]
        for part in parts:
            assert (await anext(part)).piece.text == "t"
        assert len(worker.running) == 3 and worker.queued == 0
        worker.cancel(jobs[1])
        assert len([item async for item in parts[1]]) < 2000
        for part in (parts[0], parts[2]):
            assert len([item async for item in part]) == 2000

    counts = run(scenario, rows=3)
    assert (counts["finished"], counts["cancelled"]) == (2, 1)


def test_several_answers_of_a_job_come_one_after_the_other() -> None:
    async def scenario(worker: Worker) -> None:
        job = worker.submit("a", [*answer("1", "2."), *answer("3.")])
        parts = [(part.index, part.piece.text) async for part in job.items(5)]
        assert parts == [(0, "1"), (0, "2."), (1, "3.")]

    assert run(scenario, rows=2)["finished"] == 1
