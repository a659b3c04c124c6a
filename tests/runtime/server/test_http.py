"""The server on the wire: limits, keys, hosts, leaving clients, metrics, page, signals, stress."""

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from benchmarks.server_stress import Stress, outcomes
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.server.app import Server
from hrm_edge.runtime.server.guard import Access, Limits
from serving import Running, serving, slow, wait_for

pytestmark = pytest.mark.slow

FOREVER = {"prompt": "Hello", "max_tokens": 240, "logit_bias": {"11": -100}}


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture(scope="module")
def running(model: Model) -> Iterator[Running]:
    limits = Limits(queue=2, body=4096, read_seconds=0.5, shutdown_seconds=1)
    with serving(slow(model, 0, free=3), limits=limits) as server:
        yield server


def post(running: Running, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers
    return httpx.post(f"{running.url}/v1/completions", content=content, headers=headers, timeout=30)


def begin(running: Running, body: Any) -> socket.socket:
    """A connection on which `body` was sent and nothing was read."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", running.port))
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff", 400, "invalid_json", None),
        (b"[" * 4000, 400, "invalid_json", None),
        (
            b'{"prompt": "a", "metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
            400,
            "invalid_json",
            None,
        ),
        (b'{"prompt": "\\ud800"}', 400, "invalid_json", None),
        (b'{"prompt": "a", "seed": 1e999}', 400, "invalid_json", None),
        (b" " * 5000, 413, "body_too_large", None),
        ({}, 400, "missing_required_parameter", "prompt"),
        ({"prompt": " "}, 400, "invalid_value", "prompt"),
        ({"prompt": ["a", ""]}, 400, "invalid_value", "prompt[1]"),
        ({"prompt": [288]}, 400, "invalid_value", "prompt"),
        ({"prompt": "a", "tempratur": 1}, 400, "unknown_parameter", "tempratur"),
        ({"prompt": "a", "suffix": "b"}, 400, "invalid_value", "suffix"),
        ({"prompt": "a", "n": 17}, 400, "invalid_value", "n"),
        ({"prompt": ["a"] * 9, "n": 2}, 400, "invalid_value", "n"),
        ({"prompt": "a", "best_of": 2}, 400, "invalid_value", "best_of"),
        ({"prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"prompt": "a", "top_p": 0}, 400, "invalid_value", "top_p"),
        ({"prompt": "a", "stop": [""]}, 400, "invalid_value", "stop[0]"),
        ({"prompt": "a", "stop": ["x"] * 17}, 400, "invalid_value", "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias.x"),
        ({"prompt": "a", "logit_bias": {"300": 1}}, 400, "invalid_value", "logit_bias"),
        ({"prompt": "a", "condition": "fast"}, 400, "invalid_value", "condition"),
        ({"prompt": "a", "regex": "("}, 400, "invalid_value", "regex"),
        ({"prompt": "a", "stream_options": {}}, 400, "invalid_value", "stream_options"),
        ({"prompt": "a", "echo": True}, 400, "invalid_value", "echo"),
    ],
)
def test_what_is_out_of_range_is_refused_in_openais_form(
    running: Running, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = post(running, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"] and "\n" not in error["message"]


def test_a_request_brings_its_own_plan(model: Model) -> None:
    cycles = model.manifest.model.H_cycles
    least = [1] * cycles
    expected = model.generate("Hello", max_tokens=12, l_cycles=least)
    assert expected.tokens != model.generate("Hello", max_tokens=12).tokens
    with serving(model) as running:
        body = {"prompt": "Hello", "max_tokens": 12}
        answer = post(running, body | {"l_cycles": least}).json()["choices"][0]["text"]
        assert answer == expected.text
        assert post(running, body).json()["choices"][0]["text"] != expected.text
        scored = {
            "prompt": "<|im_start|>Hi<|im_end|>abc",
            "echo": True,
            "logprobs": 0,
            "max_tokens": 0,
        }
        whole, fewer = (
            post(running, scored | more).json()["choices"][0]["logprobs"]["token_logprobs"]
            for more in ({}, {"l_cycles": least})
        )
        assert whole != fewer
        for plan in (least[1:], [99] * cycles, [0] * cycles, "1,2"):
            refused = post(running, body | {"l_cycles": plan})
            assert refused.status_code == 400, plan
            assert refused.json()["error"]["param"].startswith("l_cycles")


def test_other_paths_methods_types_and_hosts_are_refused(running: Running) -> None:
    assert httpx.get(f"{running.url}/v2").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{running.url}/v1/completions").status_code == 405
    form = post(running, {"prompt": "a"}, **{"Content-Type": "text/plain"})
    assert form.status_code == 415
    foreign = httpx.get(f"{running.url}/health", headers={"Host": "evil.example"})
    assert foreign.status_code == 421
    assert httpx.get(f"{running.url}/health", headers={"Host": "localhost:1"}).status_code == 200


def test_a_body_that_does_not_arrive_ends_with_408(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled_running_or_waiting(
    running: Running, stream: bool
) -> None:
    before, worker = running.settle(), running.server.worker
    first = begin(running, FOREVER | {"stream": stream})
    wait_for(lambda: worker.running)
    second = begin(running, FOREVER | {"stream": stream})
    wait_for(lambda: worker.queued == 1)
    second.close()
    wait_for(lambda: worker.queued == 0)
    assert worker.running, "the one that stays goes on"
    first.close()
    assert running.settle()["cancelled"] == before["cancelled"] + 2


def test_a_full_queue_says_when_to_come_back(running: Running) -> None:
    worker = running.server.worker
    held = [begin(running, FOREVER)]
    wait_for(lambda: worker.running)
    held += [begin(running, FOREVER) for _ in range(2)]
    wait_for(lambda: worker.queued == 2)
    refused = post(running, FOREVER)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert httpx.get(f"{running.url}/health").json()["queued"] == 2
    for connection in held:
        connection.close()
    running.settle()


def test_a_failing_model_is_a_500_and_the_next_request_is_answered(model: Model) -> None:
    session: Any = slow(model, 0)
    with serving(session) as running:
        whole, session.session.start = session.session.start, None
        assert post(running, FOREVER).status_code == 500
        events = post(running, FOREVER | {"stream": True}).text
        assert '"internal_error"' in events
        session.session.start = whole
        assert post(running, FOREVER).status_code == 200
        assert running.settle()["failed"] == 2


def test_a_grammar_that_leads_nowhere_is_the_clients_mistake(running: Running) -> None:
    body = FOREVER | {"regex": "(a{1000}){1000}"}
    answer = post(running, body)
    assert answer.status_code == 400 and "the constraint failed" in answer.text
    assert "the constraint failed" in post(running, body | {"stream": True}).text


def test_pages_elsewhere_call_where_they_are_allowed_to(model: Model) -> None:
    server = Server(model, "tiny", Access(("secret",), ("https://example.org",)))
    with TestClient(server.app, base_url="http://localhost") as client:
        asked = {"Access-Control-Request-Method": "POST"}
        asked |= {"Access-Control-Request-Headers": "authorization, content-type"}
        for origin, status in (("https://example.org", 200), ("https://example.com", 400)):
            answer = client.options("/v1/completions", headers=asked | {"Origin": origin})
            assert answer.status_code == status
            assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == (status == 200)
        headers = {"Origin": "https://example.org", "Authorization": "Bearer secret"}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
        assert "Access-Control-Allow-Origin" not in client.get("/health").headers


@pytest.mark.parametrize("origin", ["example.org", "ftp://a", "https://a/b"])
def test_an_origin_that_is_none_is_refused(run_cli, shared_bundle: Path, origin: str) -> None:
    code, _, told = run_cli("serve", shared_bundle, "--cors", origin)
    assert code == 1 and f"--cors is {origin!r}, expected http(s)://HOST[:PORT], or *" in told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools is not supported by this server"),
        ({"tool_choice": "required"}, "tool_choice is not supported by this server"),
        ({"functions": []}, "functions is not supported by this server"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "'image_url', which is not supported by this server: text only",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "'tool', which is not supported by this server: text only",
        ),
    ],
)
def test_what_no_model_here_can_do_is_named(running: Running, change: dict, says: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]} | change
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_metrics_are_prometheus_and_add_up(model: Model) -> None:
    with serving(model) as running:
        done = post(running, {"prompt": "Hello", "max_tokens": 5}).json()
        text = httpx.get(f"{running.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert values["hrm_edge_http_responses_total", "/v1/completions", "200"] == 1
    assert values["hrm_edge_requests_total", "finished"] == 1
    assert values["hrm_edge_completion_tokens_total",] == done["usage"]["completion_tokens"]
    assert values["hrm_edge_prompt_tokens_total",] == done["usage"]["prompt_tokens"]
    assert values["hrm_edge_ttft_seconds_count",] == 1
    assert families["hrm_edge_ttft_seconds"].type == "histogram"
    assert values["hrm_edge_anonymous_memory_bytes",] > 1 << 20
    assert values["hrm_edge_rows",] == 1
    assert values["hrm_edge_row_tokens_total", "0"] >= done["usage"]["completion_tokens"]


def test_rows_answer_side_by_side_and_a_client_that_leaves_frees_its_row(
    shared_bundle: Path, model: Model
) -> None:
    with serving(load(shared_bundle, threads=1, rows=3)) as running:
        body = FOREVER | {"max_tokens": 200, "temperature": 1, "seed": 1}
        with ThreadPoolExecutor(6) as pool:
            found = [answer.json() for answer in pool.map(post, [running] * 6, [body] * 6)]
        assert [answer["usage"]["completion_tokens"] for answer in found] == [200] * 6
        before = running.settle()
        held = [begin(running, body | {"stream": True}) for _ in range(4)]
        for connection in held[:3]:
            connection.close()
        done = held[3].makefile().read()
        held[3].close()
        assert "data: [DONE]" in done
        counts = running.settle()
        assert counts["cancelled"] + counts["finished"] == 4 + before["finished"]
        health = httpx.get(f"{running.url}/health").json()
        assert health["rows"] == 3 and health["running"] == 0
        tokens = running.server.model.rows.tokens
        assert all(tokens), "every row has answered"


def test_the_page_names_no_other_address_and_runs_its_own_script_only(running: Running) -> None:
    page = httpx.get(running.url)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    parts = re.findall(r"""(?:src|href)="([^"]*)\"""", page.text)
    assert len(parts) == 5 and all(part.startswith("page/") for part in parts), parts
    for part in parts:
        answer = httpx.get(f"{running.url}/{part}")
        assert answer.status_code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"@import|\burl\(", answer.text) or part == "page/marked.js", part
    for path in ("page/", "page/index.html/x", "page/..%2Fapp.py", "page/app.py"):
        assert httpx.get(f"{running.url}/{path}").status_code == 404, path


def test_sigterm_ends_a_stream_properly_and_exits_with_0(shared_bundle: Path) -> None:
    code = (
        "import sys; from hrm_edge.__main__ import main\n"
        f"sys.argv = ['hrm-edge', 'serve', {str(shared_bundle)!r}, '--port', '0', '--grace', '0']\n"
        "main()"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)", server.stderr.readline())
    assert found
    url = f"http://127.0.0.1:{found[1]}/v1/completions"
    wait_for(lambda: _answers(url.replace("v1/completions", "health")))
    body = FOREVER | {"stream": True, "n": 16, "temperature": 1}
    with httpx.stream("POST", url, json=body, timeout=20) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert "shutting_down" in "".join(rest[-3:])
    assert server.wait(15) == 0
    assert "Traceback" not in server.stderr.read()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port is 70000, expected 0 to 65535"),
        (["--queue", "0"], "--queue is 0, expected 1 or more"),
        (["--max-body", "1"], "--max-body is 1"),
        (["--grace", "nan"], "--grace is nan"),
        (["--api-key", " "], "an --api-key is empty"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    run_cli: Callable[..., tuple[int, str, str]], arguments: list[str], message: str
) -> None:
    code, _, err = run_cli("serve", "no-bundle", *arguments)
    assert code == 1 and message in err and len(err.splitlines()) == 1


def test_a_port_in_use_is_named(
    run_cli: Callable[..., tuple[int, str, str]], running: Running
) -> None:
    code, _, err = run_cli("serve", "no-bundle", "--port", running.port)
    assert code == 1 and f"port {running.port} (Address already in use)" in err


def test_help_imports_neither_server_nor_engine(tmp_path: Path) -> None:
    code = (
        "import sys; from hrm_edge.__main__ import cli\n"
        "cli(['serve', '--help'], standalone_mode=False)\n"
        "heavy = {'starlette', 'uvicorn', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_rough_clients_leave_nothing_behind(model: Model) -> None:
    """benchmarks/server_stress.py, short: 60 clients for 4 seconds."""
    with serving(model, keys=["secret"], limits=Limits(queue=20, shutdown_seconds=1)) as running:
        stress = Stress(running.url, "secret")
        asyncio.run(stress.run(60, 4, every=0.5))
        assert stress.wrong == []
        assert len(stress.done) == 9, stress.done
        counts = asyncio.run(outcomes(stress))
    ended = counts["finished"] + counts["cancelled"] + counts["failed"]
    assert counts["accepted"] == ended > 20 and counts["failed"] == 0
    assert min(counts["finished"], counts["cancelled"]) > 0
