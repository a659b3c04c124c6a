"""Many rough clients against one `hrm-edge serve`: does it answer, and does its memory stay?

    hrm-edge serve BUNDLE --port 8080 --api-key secret &
    python -m benchmarks.server_stress --url http://127.0.0.1:8080 --key secret --seconds 600

Each client draws again and again from: a whole answer, a stream, a stream left in the middle, a
request left while it waits, malformed JSON, a body too large, a field out of range, a wrong key,
a body that stops half-way, and a stream read slowly. A status other than the expected ones, a
stream without its end, or a request that hangs is counted as wrong. At the end every accepted
request must be accounted for. With --hostile N as many clients more do nothing but what is meant
to harm: grammars that take minutes to compile, prompts of a megabyte, heads that come byte by byte,
bytes that are no HTTP, connections that say nothing. The time of whole answers is given, so that a
run without them can be compared. Prints a report in JSON (on one line with --json); --plot draws
its memory curve.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUSY = 429
PATIENCE = 120.0  # seconds after which a request counts as hanging


@dataclass
class Stress:
    """One run: where to, how many clients, what happened."""

    url: str
    key: str
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # (seconds, anonymous bytes)
    answered: list[float] = field(default_factory=list)  # seconds that each whole answer took

    async def run(self, clients: int, seconds: float, every: float = 1.0, hostile: int = 0) -> None:
        """Let `clients` loose for `seconds`, `hostile` ones beside them, then wait for rest."""
        self.started = time.monotonic()
        end = self.started + seconds
        watcher = asyncio.create_task(self._watch(every))
        rough = [self._client(i, end, ACTS) for i in range(clients)]
        worse = [self._client(clients + i, end, HOSTILE) for i in range(hostile)]
        await asyncio.gather(*rough, *worse)
        watcher.cancel()
        await self._settle()

    async def _client(self, number: int, end: float, acts: "list[Act]") -> None:
        draw = random.Random(self.seed * 100_000 + number)
        while time.monotonic() < end:
            act = draw.choice(acts)
            try:
                await asyncio.wait_for(act(self, draw), PATIENCE)
            except TimeoutError:
                self.wrong.append(f"{act.__name__}: no end after {PATIENCE:.0f} s")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.wrong.append(f"{act.__name__}: {error!r}")
            self.done[act.__name__.strip("_")] += 1
            await asyncio.sleep(draw.random() * 0.05)

    async def _watch(self, every: float) -> None:
        while True:
            health = await self.health()
            self.memory.append((time.monotonic() - self.started, health["anonymous_memory"] or 0))
            await asyncio.sleep(every)

    async def _settle(self) -> None:
        end = time.monotonic() + 60
        health = await self.health()
        while (health["queued"] or health["running"]) and time.monotonic() < end:
            await asyncio.sleep(0.1)
            health = await self.health()
        if health["queued"] or health["running"]:
            self.wrong.append("the server does not come to rest")
        self.memory.append((time.monotonic() - self.started, health["anonymous_memory"] or 0))

    async def health(self) -> dict[str, int]:
        """GET /health."""
        _, body = await self.exchange("GET", "/health", b"", {})
        return json.loads(body)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A fresh connection."""
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port)

    def head(self, method: str, path: str, size: int, headers: dict[str, str]) -> bytes:
        """The request up to its body."""
        fields = {
            "Host": urlsplit(self.url).netloc,
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(size),
            "Authorization": f"Bearer {self.key}",
        } | headers
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Send a whole request, read the whole answer: (status, body, chunks joined)."""
        reader, writer = await self.connect()
        try:
            writer.write(self.head(method, path, len(body), headers) + body)
            answer = await reader.read()
        finally:
            writer.close()
        return parse(answer)

    def expect(self, what: str, status: int, allowed: tuple[int, ...]) -> None:
        """Count `status`; wrong if it is none of `allowed`."""
        self.statuses[status] += 1
        if status not in allowed:
            self.wrong.append(f"{what}: status {status}")


def parse(answer: bytes) -> tuple[int, bytes]:
    """(status, body) of a raw answer; (0, b"") of an empty one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, b""
    if b"transfer-encoding: chunked" in head.lower():
        body = _joined(body)
    return int(head.split()[1]), body


def _joined(body: bytes) -> bytes:
    """Chunked transfer coding, undone."""
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        found, body = found + rest[:length], rest[length + 2 :]
    return found


def _request(draw: random.Random, stream: bool, tokens: int | None = None) -> bytes:
    body = {
        "prompt": "Hello " * draw.randint(1, 20),
        "max_tokens": tokens or draw.randint(1, 40),
        "temperature": draw.choice([0, 1]),
        "stream": stream,
    }
    return json.dumps(body).encode()


async def _whole(run: Stress, draw: random.Random) -> None:
    began = time.monotonic()
    status, body = await run.exchange("POST", "/v1/completions", _request(draw, False), {})
    run.expect("whole", status, (200, BUSY))
    if status == 200:
        run.answered.append(time.monotonic() - began)
    if status == 200 and not json.loads(body)["choices"][0]["finish_reason"]:
        run.wrong.append("whole: no finish_reason")


async def _stream(run: Stress, draw: random.Random) -> None:
    status, body = await run.exchange("POST", "/v1/completions", _request(draw, True), {})
    run.expect("stream", status, (200, BUSY))
    if status == 200 and not body.endswith(b"data: [DONE]\n\n"):
        run.wrong.append(f"stream: ends with {body[-80:]!r}")


async def _leave(run: Stress, draw: random.Random) -> None:
    """Read a little of a stream, or nothing, and go."""
    body = _request(draw, draw.random() < 0.7, 200)
    reader, writer = await run.connect()
    writer.write(run.head("POST", "/v1/completions", len(body), {}) + body)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(draw.choice([1, 200, 2000])), draw.random() * 0.3)
    if draw.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def _malformed(run: Stress, draw: random.Random) -> None:
    bodies = [
        b"{",
        b"[" * 100_000,
        b'{"prompt": "\xff"}',
        b'{"prompt": NaN}',
        b"null",
        b"",
        b'"\\ud800"',
    ]
    status, _ = await run.exchange("POST", "/v1/chat/completions", draw.choice(bodies), {})
    run.expect("malformed", status, (400,))


async def _huge(run: Stress, draw: random.Random) -> None:
    """Announce far too much, and send some of it."""
    reader, writer = await run.connect()
    writer.write(run.head("POST", "/v1/completions", 1 << 30, {}) + b" " * draw.randint(0, 1 << 18))
    answer = await reader.read(4096)
    writer.close()
    run.expect("huge", parse(answer)[0], (413,))


async def _out_of_range(run: Stress, draw: random.Random) -> None:
    fields = [("temperature", -1), ("top_p", 2), ("max_tokens", 0), ("n", 99), ("what", 1)]
    body = {"prompt": "x"} | dict([draw.choice(fields)])
    status, _ = await run.exchange("POST", "/v1/completions", json.dumps(body).encode(), {})
    run.expect("out of range", status, (400,))


async def _wrong_key(run: Stress, draw: random.Random) -> None:
    headers = {"Authorization": draw.choice(["Bearer wrong", "Basic x", "", "Bearer"])}
    status, _ = await run.exchange("POST", "/v1/completions", _request(draw, False), headers)
    run.expect("wrong key", status, (401,))


async def _half(run: Stress, draw: random.Random) -> None:
    """Send half a body and go."""
    body = _request(draw, True)
    _, writer = await run.connect()
    writer.write(run.head("POST", "/v1/completions", len(body), {}) + body[: len(body) // 2])
    await asyncio.sleep(draw.random() * 0.1)
    writer.transport.abort()


async def _slow_reader(run: Stress, draw: random.Random) -> None:
    body = _request(draw, True)
    reader, writer = await run.connect()
    writer.write(run.head("POST", "/v1/completions", len(body), {}) + body)
    answer = b""
    while part := await reader.read(64):
        answer += part
        await asyncio.sleep(0.002)
    writer.close()
    status, text = parse(answer)
    run.expect("slow reader", status, (200, BUSY))
    if status == 200 and not text.endswith(b"data: [DONE]\n\n"):
        run.wrong.append("slow reader: no end")


async def _grammar(run: Stress, draw: random.Random) -> None:
    """One that takes minutes, never the same twice."""
    number = draw.randint(50_000_000, 99_999_999)
    schema = {"type": "integer", "multipleOf": number}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "response_format": shape}
    content = json.dumps(body).encode()
    status, _ = await run.exchange("POST", "/v1/chat/completions", content, {})
    run.expect("grammar", status, (400, BUSY))


async def _long_prompt(run: Stress, draw: random.Random) -> None:
    content = json.dumps({"prompt": "word " * draw.randint(100_000, 200_000)}).encode()
    status, _ = await run.exchange("POST", "/v1/completions", content, {})
    run.expect("long prompt", status, (400, BUSY))


async def _byte_by_byte(run: Stress, draw: random.Random) -> None:
    """A head that never ends, or bytes that are no HTTP, or silence."""
    text = draw.choice([b"GET / HTTP/1.1\r\nX: " + b"a" * 4000, draw.randbytes(4000), b""])
    reader, writer = await run.connect()
    answer = asyncio.create_task(reader.read())
    for byte in text:
        if answer.done():
            break
        with contextlib.suppress(ConnectionError):
            writer.write(bytes([byte]))
            await writer.drain()
        await asyncio.sleep(0.01)
    try:
        status = parse(await answer)[0]
    except ConnectionError:  # closed while we were still sending
        status = 0
    writer.close()
    run.expect("byte by byte", status, (0, 400, 408))


Act = Callable[[Stress, random.Random], Awaitable[None]]
ACTS: list[Act] = [
    _whole, _stream, _leave, _leave, _malformed, _huge, _out_of_range, _wrong_key, _half,
    _slow_reader,
]  # fmt: skip
HOSTILE: list[Act] = [_grammar, _long_prompt, _byte_by_byte]


async def outcomes(run: Stress) -> dict[str, int]:
    """The server's own counts of generation requests."""
    _, text = await run.exchange("GET", "/metrics", b"", {})
    found = {}
    for line in text.decode().splitlines():
        if line.startswith('hrm_edge_requests_total{outcome="'):
            name, value = line.split('"')[1], line.split()[-1]
            found[name] = int(value)
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """How many, the median, and what 95 and 99 in a hundred stay below."""
    if len(seconds) < 2:
        return {"answers": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100)
    found = {"median": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(seconds)}
    return {"answers": len(seconds)} | {name: round(value, 3) for name, value in found.items()}


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the server's anonymous memory over the run as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(
        title=f"hrm-edge serve under {report['clients']} rough clients, {report['seconds']:.0f} s",
        xlabel="seconds",
        ylabel="anonymous memory, MiB",
    )
    seconds, sizes = zip(*report["anonymous_mib"], strict=True)
    axes.plot(seconds, sizes, color="tab:blue")
    axes.set_ylim(0, 1.2 * max(sizes))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


async def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", default="secret")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument(
        "--hostile", type=int, default=0, help="clients that mean harm, beside them"
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="a PNG of the memory curve")
    options = parser.parse_args()
    run = Stress(options.url, options.key, options.seed)
    await run.run(options.clients, options.seconds, options.every, options.hostile)
    counts = await outcomes(run)
    ended = counts["finished"] + counts["cancelled"] + counts["failed"]
    report = {
        "clients": options.clients,
        "hostile": options.hostile,
        "seconds_per_whole_answer": quantiles(run.answered),
        "seconds": options.seconds,
        "done": dict(run.done),
        "statuses": {str(status): n for status, n in sorted(run.statuses.items())},
        "outcomes": counts,
        "accounted_for": ended == counts["accepted"],
        "wrong_in_all": len(run.wrong),
        "wrong": run.wrong[:20],
        "anonymous_mib": [[round(t), round(size / 2**20, 1)] for t, size in run.memory],
    }
    if options.plot:
        plot(report, options.plot)
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
