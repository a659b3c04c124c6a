"""The worker: fair order, limits, cancelling, failing and closing, without HTTP or a model."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from hrm_edge.runtime.server.queue import Job, QueueFull, ShuttingDown, Worker

pytestmark = pytest.mark.slow

Scenario = Callable[[Worker], Coroutine[Any, Any, None]]


def run(scenario: Scenario, limit: int = 100) -> dict[str, int]:
    """Run `scenario` with a worker; what it counted."""
    worker = Worker(limit, lambda: None)

    async def bounded() -> None:
        await asyncio.wait_for(scenario(worker), 20)

    asyncio.run(bounded())
    worker.close()
    assert worker.finish(5)
    counts = worker.counts
    assert counts["accepted"] == counts["finished"] + counts["cancelled"] + counts["failed"]
    return counts


async def gather(job: Job) -> list[Any]:
    return [item async for item in job.items(5)]


class Gate:
    """Work that stands still until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open, self.closed = threading.Event(), threading.Event(), False

    def work(self) -> Iterator[str]:
        try:
            self.entered.set()
            self.open.wait(10)
            yield "first"
            yield "second"
        finally:
            self.closed = True


async def entered(gate: Gate) -> None:
    await asyncio.to_thread(gate.entered.wait, 10)


def test_clients_take_turns() -> None:
    async def scenario(worker: Worker) -> None:
        gate, order = Gate(), list[str]()

        def work(name: str) -> Iterator[None]:
            order.append(name)
            yield

        jobs = [worker.submit("z", gate.work())]
        await entered(gate)
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            jobs.append(worker.submit(name[0], work(name)))
        gate.open.set()
        await asyncio.gather(*map(gather, jobs))
        assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]

    assert run(scenario)["finished"] == 7


def test_a_full_queue_refuses_and_a_cancelled_place_is_free_again() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        first = worker.submit("a", gate.work())
        await entered(gate)
        waiting = worker.submit("a", iter([1]))
        with pytest.raises(QueueFull):
            worker.submit("b", iter([2]))
        worker.cancel(waiting)
        assert worker.queued == 0
        second = worker.submit("b", iter([3]))
        gate.open.set()
        assert await gather(first) == ["first", "second"]
        assert await gather(second) == [3]

    counts = run(scenario, limit=1)
    assert (counts["finished"], counts["cancelled"], counts["refused"]) == (2, 1, 1)


def test_the_length_can_be_read_while_the_queue_changes() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    async def scenario(worker: Worker) -> None:
        jobs = []
        for i in range(600):
            jobs.append(worker.submit(f"client {i}", iter([1])))
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
        job = worker.submit("a", gate.work())
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
        worker = Worker(1, interrupt)
        job = worker.submit("a", gate.work())
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
        job = worker.submit("a", gate.work())
        reader = asyncio.create_task(gather(job))
        await entered(gate)
        job._items.put_nowait("item")
        for _ in range(ticks):
            await asyncio.sleep(0)
        reader.cancel()
        done, _ = await asyncio.wait({reader}, timeout=0.5)
        gate.open.set()
        assert done and reader.cancelled()

    run(scenario)


def test_a_failure_reaches_its_reader_alone() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("oh")

    async def scenario(worker: Worker) -> None:
        bad, good = worker.submit("a", broken()), worker.submit("a", iter([1, 2]))
        with pytest.raises(ValueError, match="oh"):
            await gather(bad)
        assert await gather(good) == [1, 2]

    counts = run(scenario)
    assert (counts["failed"], counts["finished"]) == (1, 1)


def test_closing_refuses_what_waits_and_ends_what_runs() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        running = worker.submit("a", gate.work())
        await entered(gate)
        waiting = worker.submit("a", iter([1]))
        worker.close()
        with pytest.raises(ShuttingDown):
            await gather(waiting)
        with pytest.raises(ShuttingDown):
            worker.submit("a", iter([1]))
        ending = asyncio.create_task(asyncio.to_thread(worker.finish, 0))
        with pytest.raises(ShuttingDown):
            await gather(running)
        gate.open.set()
        assert await ending

    assert run(scenario)["cancelled"] == 2


def test_an_impatient_reader_gets_none_until_something_comes() -> None:
    async def scenario(worker: Worker) -> None:
        gate = Gate()
        items: AsyncIterator[Any] = worker.submit("a", gate.work()).items(0.02)
        assert await anext(items) is None
        gate.open.set()
        assert [i async for i in items if i] == ["first", "second"]

    run(scenario)
