"""Grammars that would take minutes and gigabytes stop nobody but whoever sent them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.decoding.guided import Grammar
from hrm_edge.runtime.server.trial import Budget, Trial
from serving import Running, serving

pytestmark = pytest.mark.slow

HOSTILE = {"type": "integer", "multipleOf": 99_999_999}
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1, max_context=64)


@pytest.fixture(scope="module")
def running(model: Model) -> Iterator[Running]:
    with serving(model) as server:
        yield server


def ask(running: Running, schema: dict | None = None) -> httpx.Response:
    body: dict = {"messages": MESSAGES, "max_tokens": 4}
    if schema is not None:
        shape = {"name": "x", "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)


def test_a_hostile_schema_is_refused_by_its_keyword_and_others_are_answered(
    running: Running,
) -> None:
    answers: list[httpx.Response] = []
    hostile = [
        threading.Thread(target=lambda: answers.append(ask(running, HOSTILE))) for _ in range(2)
    ]
    for thread in hostile:
        thread.start()
    served = 0
    while any(thread.is_alive() for thread in hostile):
        assert ask(running).status_code == 200
        health = httpx.get(f"{running.url}/health").json()
        assert health["status"] == "ok" and health["compiling"] in (0, 1, 2)
        served += 1
    assert served
    for answer in answers:
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "response_format"
        assert "multipleOf 99999999 is the likeliest cause" in error["message"]


def test_usual_schemas_pass_and_wrong_ones_are_told_why(running: Running) -> None:
    assert ask(running, {"type": "boolean"}).status_code == 200
    wrong = ask(running, {"type": "nonsense"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "response_format"


def test_what_passed_is_not_tried_again_and_the_child_is_replaced(model: Model) -> None:
    assert model.guide is not None
    trial = Trial(model.guide, Budget(seconds=4.0))
    usual, hostile = (
        Grammar("json_schema", json.dumps(schema)) for schema in ({"type": "boolean"}, HOSTILE)
    )
    try:
        trial(usual)
        with pytest.raises(HRMEdgeError, match="more than 4 s"):
            trial(hostile)
        trial(usual)  # remembered: no new child is needed
        assert trial._child is None
        trial(Grammar("regex", "[ab]{3}"))
        assert trial._child is not None
    finally:
        trial.close()


def test_without_llguidance_it_is_the_server_that_lacks_something(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = running.server.model.guide
    assert guide is not None
    monkeypatch.setattr(guide, "_tokenizer", None)
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    answer = ask(running, {"type": "boolean"})
    assert answer.status_code == 501
    assert answer.json()["error"]["code"] == "not_supported"
    assert "pip install 'hrm-edge[guided]'" in answer.json()["error"]["message"]
