"""What every request passes: whose host name it calls, its key, and how much it may send."""

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .wire.errors import RequestError, invalid

OPEN_PATHS = ("/", "/health", "/openapi.json", "/favicon.ico")  # readable without a key


@dataclass(frozen=True)
class Limits:
    """What one server takes. Times are in seconds."""

    queue: int = 64
    body: int = 1 << 20  # bytes
    head_seconds: float = 10.0  # for a request's line and headers
    read_seconds: float = 30.0
    write_seconds: float = 60.0  # for a client to take the next event
    ping_seconds: float = 10.0
    shutdown_seconds: float = 10.0


@dataclass(frozen=True)
class Access:
    """Who may call. No keys: everyone who reaches the port."""

    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # of pages elsewhere that may call
    host: str = "127.0.0.1"  # that the server listens on

    @property
    def local(self) -> bool:
        """Whether the server listens to this machine alone."""
        return self.host == "localhost" or _is_loopback(self.host)

    def check(self, path: str, headers: Headers) -> None:
        """Raise RequestError: 421 for a foreign host name, 401 for a missing or wrong key."""
        name = _host_name(headers.get("host", ""))
        if self.local and not (name in ("localhost", self.host) or _is_loopback(name)):
            # A web page whose name was rebound to 127.0.0.1 must not reach a private server.
            raise RequestError(
                421, f"this server does not answer for the host {name[:80]!r}", "wrong_host"
            )
        is_open = path in OPEN_PATHS or path.startswith("/page/")
        if self.api_keys and not is_open and not self._knows(_key(headers)):
            raise RequestError(
                401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key"
            )

    def _knows(self, key: str) -> bool:
        found = [hmac.compare_digest(key.encode(), known.encode()) for known in self.api_keys]
        return any(found)


def client_of(request: Request) -> str:
    """Whose turn in the queue a request takes: that of its key and address."""
    host = request.client.host if request.client else ""
    return f"{_key(request.headers)}@{host}"


def _key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """Wraps the application: refuses early, and tells `count` each response's path and status."""

    def __init__(self, app: ASGIApp, access: Access, count: Callable[[str, int], None]) -> None:
        self.app, self.access, self.count = app, access, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(scope["path"], message["status"])
            await send(message)

        app: ASGIApp = self.app
        try:
            self.access.check(scope["path"], Headers(scope=scope))
        except RequestError as error:
            app = JSONResponse(error.body(), error.status, error.headers())
        await app(scope, receive, counted)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request. Raises RequestError: 408, 413 or 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also: what a foreign web page cannot send unasked
        raise RequestError(
            415, "the Content-Type must be application/json", "unsupported_media_type"
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.body:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.read_seconds):
            return await _read(request, limits)
    except TimeoutError:
        message = f"the body took more than {limits.read_seconds:g} s to arrive"
        raise RequestError(408, message, "request_timeout") from None
    except ClientDisconnect:
        raise invalid("the client left", code="disconnected") from None


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body has more than {limits.body} bytes", "body_too_large")


async def unless_gone(request: Request, work: Awaitable[object]) -> bool:
    """Await `work`, cancelled when the client leaves; False if it left. The body must be read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
