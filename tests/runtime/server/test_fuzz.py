"""Requests that nobody thought of: drawn from the server's own OpenAPI document, and beside it.

schemathesis reads the served document and sends what fits it and what does not; hypothesis compares
what msgspec takes with what jsonschema_rs takes of the published schemas.
"""

import json
import operator
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from hrm_edge.runtime import load
from hrm_edge.runtime.server.guard import Limits
from hrm_edge.runtime.server.wire import ask as wire_ask
from hrm_edge.runtime.server.wire.errors import RequestError
from hrm_edge.runtime.server.wire.openapi import openapi
from hrm_edge.runtime.server.wire.requests import chat_type, checked, completion_type, parse_json
from serving import Running, serving

pytestmark = pytest.mark.slow

KEY = "a-key"
MESSAGE = {"role": "user", "content": "Hi"}
CYCLES = (2, 3)
TYPES = {"completion": completion_type("tiny", CYCLES), "chat": chat_type("tiny", CYCLES)}
COMPONENTS = openapi(tuple(TYPES.values()), "tiny")["components"]


def inlined(schema: Any) -> Any:
    """`schema` with what it refers to in place."""
    if isinstance(schema, list):
        return [inlined(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(COMPONENTS["schemas"][schema["$ref"].rpartition("/")[2]])
    return {k: inlined(v) for k, v in schema.items() if k != "discriminator"}


SCHEMAS = {name: inlined(COMPONENTS["schemas"][name]) for name in TYPES}
VALIDATORS = {
    name: jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": COMPONENTS}
    )
    for name in TYPES
}
POSTS = ("/v1/completions", "/v1/chat/completions")
GETS = ("/v1/models", "/health", "/metrics", "/openapi.json")
OPERATIONS = [
    *(("POST", path, mode) for path in POSTS for mode in GenerationMode),
    *(("GET", path, GenerationMode.POSITIVE) for path in GETS),
]
# What a schema cannot say: prompts that do not fit, fields that need or exclude one another,
# patterns and grammars, tokens that the vocabulary lacks, templates with an order of roles.
BEYOND = {
    *("prompt", "messages", "n", "best_of", "max_tokens", "echo", "stream_options"),
    *("top_logprobs", "logit_bias", "stop", "regex", "grammar", "response_format", None),
    *("condition", "seed"),
}
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
quick = settings(deadline=None, derandomize=True, suppress_health_check=SLOW)
load_all_checks()
# Of bodies that fit, most are refused for what a schema cannot say, such as who speaks last.
EXAMPLES = {GenerationMode.POSITIVE: 200, GenerationMode.NEGATIVE: 40}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
anything = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars)


def mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Four times of five `usual`; one_of would weigh each of their branches alike."""
    return st.integers(0, 4).flatmap(lambda drawn: usual if drawn else rare)


def near(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit `schema`, or nearly do: at its bounds and just past them, or of any type."""
    if "anyOf" in schema:
        return mostly(st.one_of(*map(near, schema["anyOf"])), anything)
    types = schema.get("type", [])
    kinds = [KINDS[name](schema) for name in ([types] if isinstance(types, str) else types)]
    if "enum" in schema:
        kinds.append(st.sampled_from(schema["enum"]))
    return mostly(st.one_of(*kinds), anything) if kinds else anything


def _numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    bounds = [schema[b] for b in ("minimum", "maximum", "exclusiveMinimum") if b in schema]
    edges = [bound + step for bound in bounds for step in (-1, 0, 1)] or [0]
    edges += [float(edge) for edge in edges] + [edge + 0.5 for edge in edges]
    return mostly(st.sampled_from(edges), st.sampled_from([-0.0, 1e300, 2**53 + 1, True, "1"]))


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    words = ["", "direct", "synth,cot", "direct,", "cot\n", "0", "42\n", "٣", "text"]
    lengths = [n for key in ("minLength", "maxLength") for n in (schema.get(key, 1),)]
    edges = [c * max(0, n + step) for n in lengths for step in (-1, 0, 1) for c in ("a", "😀")]
    return st.sampled_from(words + edges) | st.text(max_size=8)


def _arrays(schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    item = near(schema.get("items", {}))
    few = min(schema.get("maxItems", 2), 17)
    return (
        st.lists(item, max_size=3)
        | item.map(lambda one: [one] * few)
        | item.map(lambda one: [one] * (few + 1))
    )


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: near(field) for name, field in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    whole = st.fixed_dictionaries(required, optional=fields)
    names = st.text(max_size=5) | _strings(schema.get("propertyNames", {}))
    more = st.dictionaries(names, near(schema.get("additionalProperties") or {}), max_size=2)
    return mostly(whole, st.builds(operator.or_, whole, more) | _without_any(whole))


def _without_any(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """`values` less one of their fields."""
    return values.flatmap(
        lambda found: st.sampled_from([*found, ""]).map(
            lambda gone: {name: value for name, value in found.items() if name != gone}
        )
    )


KINDS = {
    "number": _numbers,
    "integer": _numbers,
    "string": _strings,
    "array": _arrays,
    "object": _objects,
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
}


def bodies(name: str) -> st.SearchStrategy[Any]:
    """A valid body of one endpoint in which up to two fields are nearly right, or worse."""
    fields = SCHEMAS[name]["properties"]
    least = {"prompt": "Hi"} if name == "completion" else {"messages": [MESSAGE]}
    one = st.one_of(
        [near(field).map(lambda value, name=name: {name: value}) for name, field in fields.items()]
    )
    changed = st.builds(lambda a, b: least | a | b, one, one | st.just({}))
    strange = st.builds(operator.or_, changed, st.dictionaries(st.text(max_size=5), scalars))
    return mostly(changed, strange | _without_any(changed) | anything)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_taken_is_what_is_published(name: str) -> None:
    verdicts = Counter[bool]()

    @settings(quick, max_examples=250)
    @given(bodies(name))
    def agree(body: Any) -> None:
        errors = list(VALIDATORS[name].iter_errors(body))
        verdicts[not errors] += 1
        try:
            checked(body, TYPES[name])
        except RequestError as error:
            assert errors, f"only we refuse {body!r}: {error}"
            places = [_place(each.instance_path) for each in errors]
            where = error.param or ""
            assert any(where.startswith(place[:80]) for place in places), (where, places, body)
        else:
            assert not errors, f"only jsonschema refuses {body!r}: {errors[0].message}"

    agree()
    assert min(verdicts[True], verdicts[False]) > 50, verdicts


def _place(path: list[str | int]) -> str:
    """A path in a body as our messages write it: messages[0].role."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


@settings(quick, max_examples=200)
@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a": 1e999, "a": "\\ud800"}')
@example(b"9" * 5000)
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        value = parse_json(body)
    except RequestError as error:
        assert (error.status, error.code) == (400, "invalid_json")
    else:
        assert json.loads(body) == value or value != value


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_body_that_fits_becomes_a_question_or_is_refused_for_what_a_schema_cannot_say(
    name: str,
) -> None:
    asked = Counter[bool]()
    ask = {"completion": wire_ask.completion, "chat": wire_ask.chat}[name]

    @settings(quick, max_examples=150)
    @given(bodies(name))
    def understood(body: Any) -> None:
        assume(VALIDATORS[name].is_valid(body))
        try:
            found = ask(body, TYPES[name], "tiny")
        except RequestError as error:
            assert error.status == 400 and _beyond(error.param), (error.param, body)
            asked[False] += 1
        else:
            assert 1 <= found.choices <= 16
            asked[True] += 1

    understood()
    assert asked[True] > 50, asked


@pytest.fixture(scope="module")
def running(shared_bundle: Path) -> Iterator[Running]:
    """A context of 40 tokens, so that whatever is asked for is soon answered."""
    model = load(shared_bundle, threads=1, max_context=40)
    with serving(model, keys=[KEY], limits=Limits(body=1 << 18, shutdown_seconds=1)) as server:
        yield server


def _fits_or_says_why(ctx: Any, response: Any, case: schemathesis.Case) -> None:
    """What fits is answered, or refused for a field whose meaning goes beyond the schema."""
    if response.status_code != 400 or not isinstance(case.body, dict):
        return
    if VALIDATORS["chat" if "chat" in case.path else "completion"].is_valid(case.body):
        assert _beyond(response.json()["error"]["param"]), (case.body, response.text)


def _beyond(param: str | None) -> bool:
    return (param and re.split(r"[.\[]", param)[0]) in BEYOND


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_the_server_does_what_its_document_says(
    running: Running, method: str, path: str, mode: GenerationMode
) -> None:
    """Bodies that fit the document, and ones that don't, through schemathesis's own checks.

    Left out is its rule that whatever fits the schema is accepted; `_fits_or_says_why` is weaker.
    """
    document = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operation = document[path][method]
    headers = {"Authorization": f"Bearer {KEY}"}
    statuses = Counter[int]()

    @settings(quick, max_examples=EXAMPLES[mode] if method == "POST" else 5)
    @given(operation.as_strategy(generation_mode=mode))
    def conform(case: schemathesis.Case) -> None:
        answer = case.call_and_validate(
            headers=headers,
            excluded_checks=[positive_data_acceptance],
            additional_checks=[_fits_or_says_why],
            timeout=30,
        )
        statuses[answer.status_code] += 1

    conform()
    assert running.settle()["failed"] == 0
    assert statuses.keys() <= {200, 400, 401, 404, 405, 413, 415}
    if mode is GenerationMode.NEGATIVE:
        assert statuses[400] > 0, statuses
    elif method == "GET":  # of bodies that fit, none may make sense: who speaks last, for one
        assert statuses[200] > 0, statuses
