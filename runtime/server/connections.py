"""uvicorn's HTTP/1.1 with a limit on how long a connection may be open without asking anything.

Such connections cost a client nothing and a server its last free place: a head that comes byte by
byte ("slow loris"), bytes that are no HTTP and have no line's end, or silence.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def protocol(seconds: float, most: int) -> type[H11Protocol]:
    """The protocol of one server: a request's head has to be there after `seconds`.

    Beyond `most` connections, each new one ends that which has waited longest for a head.
    """
    waiting: dict[Any, asyncio.TimerHandle] = {}  # of Timed, oldest first

    class Timed(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most and waiting:
                next(iter(waiting)).give_up()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def give_up(self) -> None:
            """Close the connection; a request that was begun is told why."""
            self._rest()
            if self.conn.trailing_data[0]:
                self.transport.write(TOO_LATE)
            self.transport.close()

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._rest()
            elif self not in waiting:
                waiting[self] = self.loop.call_later(seconds, self.give_up)

        def _rest(self) -> None:
            if self in waiting:
                waiting.pop(self).cancel()

    return Timed
