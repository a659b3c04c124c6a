"""Connections that ask nothing: silence, a head byte by byte, bytes that are no HTTP."""

import contextlib
import io
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import segno

from hrm_edge.runtime import Model, load
from hrm_edge.runtime.server import run
from hrm_edge.runtime.server.app import Server
from hrm_edge.runtime.server.connections import TOO_LATE
from hrm_edge.runtime.server.guard import Limits
from serving import Running, serving

pytestmark = pytest.mark.slow

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture
def hasty(model: Model) -> Iterator[Running]:
    with serving(model, limits=Limits(head_seconds=0.3, shutdown_seconds=1)) as running:
        yield running


def opened(running: Running, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    connection.sendall(data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(4096):
            found += part
    return found


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b""),
        (HEAD, b"HTTP/1.1 408 "),
        (b"hello", b"HTTP/1.1 408 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HTTP/1.1 400 "),
        (b"\x00" * 100, b"HTTP/1.1 400 "),
        (b"what is this\r\n\r\n", b"HTTP/1.1 400 "),
        (b"x" * 100_000, b"HTTP/1.1 4"),
    ],
)
def test_who_asks_nothing_is_told_so_and_let_go(hasty: Running, data: bytes, answer: bytes) -> None:
    found = rest(opened(hasty, data))
    assert found.startswith(answer) and bool(found) == bool(answer)


def test_a_head_byte_by_byte_gains_no_time(hasty: Running) -> None:
    connection = opened(hasty)
    with pytest.raises(ConnectionError):
        for _ in range(400):
            connection.sendall(b"G")
            time.sleep(0.05)


def test_a_connection_kept_alive_asks_again_and_is_closed_in_silence(hasty: Running) -> None:
    connection = opened(hasty, HEAD + b"\r\n")
    for more in (HEAD + b"\r\n", b""):
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        connection.sendall(more)
    began = time.monotonic()
    assert b"408" not in rest(connection)
    assert time.monotonic() - began < 10  # uvicorn alone would wait longer


def test_an_answer_may_take_longer_than_a_head(hasty: Running) -> None:
    body = {"prompt": "Hello", "max_tokens": 200, "logit_bias": {"11": -100}}
    began = time.monotonic()
    while time.monotonic() - began < 1:
        answer = httpx.post(f"{hasty.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200


def test_silent_connections_do_not_keep_others_out(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CONNECTIONS", 20)
    monkeypatch.setattr(run, "SPARE", 5)
    with serving(model, limits=Limits(head_seconds=60, shutdown_seconds=1)) as running:
        silent = [opened(running, HEAD) for _ in range(60)]
        for _ in range(5):
            assert httpx.get(f"{running.url}/health").status_code == 200
        assert rest(silent[0]) in (b"", TOO_LATE)  # whether its head had come by then or not
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_phone_reads_the_address_off_the_terminal(
    model: Model, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    screen, code = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(run, "_own_address", lambda family: "192.0.2.7")
    with run.listen("0.0.0.0", 0) as bound:
        run._announce(Server(model, "tiny"), bound)
        port = bound.getsockname()[1]
    segno.make(f"http://192.0.2.7:{port}").terminal(code, compact=True)
    assert f"a phone's browser too: http://192.0.2.7:{port}" in screen.getvalue()
    assert (code.getvalue() in screen.getvalue()) == terminal
