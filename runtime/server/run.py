"""Runs a Server under uvicorn on a socket: announces itself, and ends cleanly on SIGTERM."""

import asyncio
import contextlib
import logging
import socket
import sys

import click
import segno
import uvicorn

from hrm_edge.errors import HRMEdgeError

from .app import Server
from .connections import protocol

CONNECTIONS = 512  # from these on, uvicorn answers 503 by itself
EVERYWHERE = ("0.0.0.0", "::")
SPARE = 64  # places kept free of connections that ask nothing


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises HRMEdgeError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as on_error:
            on_error.callback(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            on_error.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HRMEdgeError(
            f"cannot listen on {host} port {port} ({reason}); choose another --host or --port"
        ) from None
    return bound


def serve(server: Server, bound: socket.socket, access_log: bool = False) -> None:
    """Answer requests until SIGTERM or SIGINT; then finish or cancel what runs, and return."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    _announce(server, bound)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again at its end
        runner(server, access_log).run(sockets=[bound])


def runner(server: Server, access_log: bool = False) -> uvicorn.Server:
    """uvicorn with what an open port needs; `run` it with a bound socket."""
    config = uvicorn.Config(
        server.app,
        http=protocol(server.limits.head_seconds, CONNECTIONS - SPARE),
        ws="none",
        log_config=None,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=int(server.limits.shutdown_seconds) + 5,
    )
    return _Uvicorn(config, server)


class _Uvicorn(uvicorn.Server):
    """Tells the worker of a shutdown as it begins, so that waiting clients hear at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        worker, seconds = self._server.worker, self._server.limits.shutdown_seconds
        worker.close()
        ending = asyncio.create_task(asyncio.to_thread(worker.finish, seconds))
        await super().shutdown(sockets)
        await ending


def _announce(server: Server, bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{server.name} at http://{shown}:{port} (API: /v1, page: /)", err=True)
    if (rows := server.model.rows.count) > 1:
        click.echo(f"Up to {rows} answers at once, each within its own context.", err=True)
    if host in EVERYWHERE and (reached := _own_address(bound.family)):
        address = f"http://{reached}:{port}"
        click.echo(f"From this network, a phone's browser too: {address}", err=True)
        if sys.stderr.isatty():
            segno.make(address).terminal(sys.stderr, compact=True)
    if not server.access.local and not server.access.api_keys:
        click.echo("Whoever reaches this port can use it; --api-key asks for a key.", err=True)


def _own_address(family: int) -> str | None:
    """This machine's address in its network, None without one. Nothing is sent for it."""
    outside = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # for documentation only
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((outside, 9))
        address = probe.getsockname()[0]
        return f"[{address}]" if family == socket.AF_INET6 else address
    return None
