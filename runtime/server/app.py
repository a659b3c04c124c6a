"""The HTTP server: OpenAI's completions and chat over one model, health, metrics, and a page.

The application is a function of a loaded Model; `hrm-edge serve` (cli_serve) runs it.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hrm_edge import memory
from hrm_edge.chat_template import takes_system
from hrm_edge.errors import HRMEdgeError
from hrm_edge.tool_format import tool_format

from ..decoding.answer import Answer
from ..engine import Model
from .answer import answers
from .guard import Access, Guard, Limits, client_of, read_body, unless_gone
from .metrics import Metrics
from .queue import Job, Part, QueueFull, ShuttingDown, Worker
from .static import HEADERS, INDEX, page_files
from .trial import Trial
from .wire import ask as wire_ask
from .wire.ask import Ask
from .wire.errors import RequestError, invalid
from .wire.logprobs import Names
from .wire.openapi import openapi
from .wire.reply import Reply
from .wire.requests import chat_type, completion_type, parse_json

logger = logging.getLogger("hrm_edge.server")
ENCODERS = 2  # threads that tokenize prompts beside the running answer
COMPILING = 16  # requests whose grammar is compiled or waits for it
CLIENT_LEFT = 499  # nginx's status for a client that closed its connection; nobody reads it


@dataclass
class Server:
    """One model's server: `app` is the ASGI application, `worker` the thread that runs it."""

    model: Model
    name: str
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.worker, self.metrics = Worker(self.limits.queue, self.model.rows), Metrics()
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self._compiler = ThreadPoolExecutor(1, "compile")
        self._compiling = 0  # requests whose grammar waits for it or is compiled
        self.trial = Trial(self.model.guide) if self.model.guide is not None else None
        if self.model.guide is not None:
            self.model.guide.trial = self.trial
        self.names, self.created = Names(self.model.tokenizer), int(time.time())
        architecture = self.model.manifest.model
        cycles = (architecture.H_cycles, architecture.L_cycles)
        self._completion = completion_type(self.name, cycles)
        template = self.model.chat_template
        self.tools = tool_format(template) if template is not None else None
        self._chat = chat_type(self.name, cycles, self.tools is not None)
        self.document = openapi((self._completion, self._chat), self.name)
        self.page = page_files()
        self._takes_system = template is not None and takes_system(template)
        guarded = Guard(self._routes(), self.access, self._count)
        self.app: ASGIApp = guarded
        if self.access.origins:
            fields = ["Authorization", "Content-Type"]
            origins, methods = list(self.access.origins), ["GET", "POST"]
            self.app = CORSMiddleware(guarded, origins, methods, fields)

    def _routes(self) -> ASGIApp:
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/v1/completions", self.completions, methods=post),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name}", self.one_model, methods=get),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.show_metrics, methods=get),
            Route("/openapi.json", self.show_document, methods=get),
            Route("/favicon.ico", _no_content, methods=get),
            Route("/", self.show_page, methods=get),
            *(Route(f"/page/{name}", self.show_page, methods=get) for name in self.page),
        ]
        self._paths = {route.path for route in routes}
        handlers: Any = {RequestError: _refuse, HTTPException: _refuse_http, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.worker.close()
        self.worker.finish(0)
        if self.trial is not None and self.model.guide is not None:
            self.model.guide.trial = None
            self.trial.close()
        for pool in (self._encoders, self._compiler):
            pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, path: str, status: int) -> None:
        self.metrics.responses[path if path in self._paths else "other", status] += 1

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = parse_json(await read_body(request, self.limits))
        return await self._answer(request, wire_ask.completion(body, self._completion, self.name))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = parse_json(await read_body(request, self.limits))
        return await self._answer(request, wire_ask.chat(body, self._chat, self.name))

    async def _answer(self, request: Request, ask: Ask) -> Response:
        try:
            self.worker.check()
            work = await self._prepare(request, ask)
            if work is None:
                return Response(status_code=CLIENT_LEFT)
            job = self.worker.submit(client_of(request), work)
        except (QueueFull, ShuttingDown) as error:
            raise self._refusal(error) from None
        reply = Reply(ask, self.name, self.names, self.tools)
        if ask.stream:
            return EventStream(
                self._chunks(job, reply), request, self.limits, partial(self.worker.cancel, job)
            )
        try:
            present = await unless_gone(request, self._gather(job, reply))
        finally:
            self.worker.cancel(job)
        return JSONResponse(reply.whole()) if present else Response(status_code=CLIENT_LEFT)

    async def _prepare(self, request: Request, ask: Ask) -> list[Answer] | None:
        """Tokenize, and compile a grammar apart from all else; None if the client left meanwhile.

        Raises QueueFull if too many grammars wait, and what `answers` raises.
        """
        loop = asyncio.get_running_loop()
        if not ask.constrained:
            return await loop.run_in_executor(self._encoders, answers, self.model, ask, self.tools)
        if self._compiling >= COMPILING:
            raise QueueFull
        self._compiling += 1
        future = loop.run_in_executor(self._compiler, answers, self.model, ask, self.tools)
        try:
            return await future if await unless_gone(request, asyncio.wait([future])) else None
        finally:
            future.cancel()
            self._compiling -= 1

    def _refusal(self, error: Exception) -> RequestError:
        """What a client is told of `error`."""
        if isinstance(error, ShuttingDown):
            return RequestError(503, "the server is shutting down", "shutting_down")
        if isinstance(error, QueueFull):
            message = f"{self.limits.queue} requests are waiting already; try again later"
            return RequestError(429, message, "queue_full", retry_after=5)
        if isinstance(error, HRMEdgeError):  # a grammar that led nowhere
            return invalid(str(error))
        return _internal()

    async def _gather(self, job: Job, reply: Reply) -> None:
        try:
            async for part in job.items(self.limits.ping_seconds):
                self._take(part, reply)
        except (ShuttingDown, HRMEdgeError) as error:
            raise self._refusal(error) from None

    def _take(self, part: Part | None, reply: Reply) -> list[dict[str, Any]]:
        """Add a piece of the answer to the reply and the counters; its chunks."""
        if part is None:
            return []
        self.metrics.completion_tokens += not reply.ask.echo
        if part.piece.stats is not None:
            self.metrics.answered(part.piece.stats)
        return reply.add(part.index, part.piece)

    async def _chunks(self, job: Job, reply: Reply) -> AsyncGenerator[str]:
        """Server-sent events; a comment where nothing came for a while, an error at the last."""
        try:
            for chunk in reply.opening():
                yield _event(chunk)
            async for part in job.items(self.limits.ping_seconds):
                if part is None:
                    yield ": waiting\n\n"
                    continue
                for chunk in self._take(part, reply):
                    yield _event(chunk)
            for chunk in reply.closing():
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield _event(self._refusal(error).body())

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        if name != self.name:
            message = f"the model {name[:80]!r} is not served here, only {self.name!r}"
            raise RequestError(404, message, "model_not_found", "model")
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "hrm-edge",
            "max_context": self.model.session.max_context,
            "chat_template": self.model.chat_template is not None,
            "system_prompt": self._takes_system,
            "tools": self.tools is not None,
        }

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while requests are taken, 503 while shutting down."""
        state = {
            "status": "ok" if self.worker.open else "shutting down",
            "rows": self.model.rows.count,
            "running": len(self.worker.running),
            "queued": self.worker.queued,
            "compiling": self._compiling,
            "anonymous_memory": memory.anonymous(),
            "peak_memory": memory.peak(),
        }
        return JSONResponse(state, 200 if self.worker.open else 503)

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.metrics.text(self.worker), media_type=kind)

    async def show_document(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(self.document)

    async def show_page(self, request: Request) -> Response:
        """GET / and GET /page/{name}."""
        content, kind = self.page[request.url.path.removeprefix("/page/").strip("/") or INDEX]
        return Response(content, media_type=kind, headers=HEADERS)


class EventStream(Response):
    """Sends events until they end, the client leaves, or it takes nothing for too long."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str],
        request: Request,
        limits: Limits,
        release: Callable[[], None],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.request, self.limits, self.release = events, request, limits, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await unless_gone(self.request, self._send(send))
        except TimeoutError:
            logger.info("a client took nothing for %g s; dropped", self.limits.write_seconds)
        finally:
            self.release()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self.events) as events:
            async for event in events:
                body = {"type": "http.response.body", "body": event.encode(), "more_body": True}
                async with asyncio.timeout(self.limits.write_seconds):
                    await send(body)
        await send({"type": "http.response.body", "body": b""})


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _internal() -> RequestError:
    return RequestError(500, "the server failed; see its log", "internal_error")


async def _refuse(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    found = RequestError(error.status_code, f"{request.url.path[:80]}: {error.detail}", code)
    return JSONResponse(found.body(), error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(_internal().body(), 500)


async def _no_content(request: Request) -> Response:
    return Response(status_code=204)
