"""A real server on a free loopback port, in a thread of this process."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrm_edge.runtime import Model
from hrm_edge.runtime.server.app import Server
from hrm_edge.runtime.server.guard import Access, Limits
from hrm_edge.runtime.server.run import listen, runner


@dataclass(frozen=True)
class Running:
    """A server that listens at `url`."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def counts(self) -> dict[str, int]:
        """What became of the generations so far."""
        return dict(self.server.worker.counts)

    def settle(self, seconds: float = 20) -> dict[str, int]:
        """Wait until nothing waits or runs; the counts then."""
        wait_for(lambda: self.server.worker.idle, seconds)
        return self.counts


@contextlib.contextmanager
def serving(
    model: Model, keys: Sequence[str] = (), limits: Limits | None = None
) -> Iterator[Running]:
    """Serve `model` as "tiny"; the thread has ended afterwards."""
    server = Server(model, "tiny", Access(tuple(keys)), limits or Limits(shutdown_seconds=1))
    bound = listen("127.0.0.1", 0)
    uvicorn = runner(server)
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_for(lambda: uvicorn.started)
        yield Running(server, bound.getsockname()[1])
    finally:
        uvicorn.should_exit = True
        thread.join(30)
        bound.close()
    assert not thread.is_alive()


def wait_for(happened: Any, seconds: float = 10) -> None:
    """Poll until `happened()`; an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class SlowSession:
    """A session that takes `seconds` for each call, as a large model would.

    Every call of an answer after the first `free` ones stands still until it is interrupted, so
    that such an answer never ends by itself, however busy the machine.
    """

    def __init__(self, session: Any, seconds: float, free: int | None) -> None:
        self.session, self.seconds, self.free, self.calls = session, seconds, free, 0
        self.interrupted = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        self.calls = 0
        self._wait()
        return self.session.start(ids)

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        self._wait()
        return self.session.decode(ids)

    def cancel(self) -> None:
        self.interrupted.set()

    def _wait(self) -> None:
        self.interrupted.clear()
        self.calls += 1
        stuck = self.free is not None and self.calls > self.free
        if self.interrupted.wait(60 if stuck else self.seconds):
            raise RuntimeError("interrupted")
        assert not stuck, "nobody interrupted this call"


def slow(model: Model, seconds: float, free: int | None = None) -> Model:
    """The same model behind a SlowSession."""
    session: Any = SlowSession(model.session, seconds, free)
    return Model(session, model.tokenizer, model.manifest, model.chat_template, guide=model.guide)
