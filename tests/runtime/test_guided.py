"""Constraints: whatever is sampled keeps to them, judged by other libraries than the one used."""

import json
import re
from pathlib import Path

import pytest
from jsonschema_rs import validator_for

from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.decoding.speculation import Pace

pytestmark = pytest.mark.slow

SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "array",
        "items": {"enum": ["red", "green", "blue"]},
        "minItems": 1,
        "maxItems": 4,
    },
    {
        "$defs": {"leaf": {"type": "boolean"}},
        "anyOf": [
            {"const": None},
            {
                "type": "object",
                "properties": {"ok": {"$ref": "#/$defs/leaf"}, "note": {"maxLength": 4}},
                "required": ["ok"],
                "additionalProperties": False,
            },
        ],
    },
]
SCHEMAS[2]["anyOf"][1]["properties"]["note"]["type"] = "string"  # type: ignore[index]


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.mark.parametrize("number", range(3))
def test_five_hundred_samples_under_three_schemas_are_valid(model: Model, number: int) -> None:
    schema, count = SCHEMAS[number], (200, 150, 150)[number]
    valid = validator_for(schema)
    found = set()
    for seed in range(count):
        done = model.generate(
            "Hello", json_schema=schema, temperature=1.0, seed=seed, max_tokens=200
        )
        assert done.finish_reason == "stop", done
        assert valid.is_valid(json.loads(done.text)), done.text
        found.add(done.text)
    assert len(found) >= (100, 20, 3)[number]


def test_a_regex_is_matched_in_full_and_forced_text_takes_few_calls(model: Model) -> None:
    pattern = r"The answer is [0-9]{2,3}, (certainly|perhaps)\."
    for seed in range(10):
        done = model.generate("Hello", regex=pattern, temperature=1, seed=seed)
        assert re.fullmatch(pattern, done.text)
        alone = model.generate("Hello", regex=pattern, temperature=1, seed=seed, speculate=False)
        assert done.tokens == alone.tokens
        assert done.stats.accepted > 0 and done.stats.calls < alone.stats.calls / 2


def test_a_lark_grammar_is_kept_to(model: Model) -> None:
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/'
    for seed in range(10):
        done = model.generate("Hello", grammar=grammar, temperature=1, seed=seed)
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", done.text)


@pytest.mark.parametrize("length", [1, 4])
def test_drafting_does_not_change_constrained_samples(
    model: Model, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(length, limit), 1.0))
    for seed in range(8):
        options = {"json_schema": json.dumps(SCHEMAS[0]), "temperature": 1.0, "seed": seed}
        drafted = model.generate('{"name": "aaa"}', max_tokens=80, **options)
        alone = model.generate('{"name": "aaa"}', max_tokens=80, speculate=False, **options)
        assert drafted.tokens == alone.tokens


def test_constraints_bear_stop_strings_and_limits(model: Model) -> None:
    done = model.generate("Hello", regex="a{50}", max_tokens=7)
    assert (done.text, done.finish_reason) == ("a" * 7, "length")
    done = model.generate("Hello", regex="a{50}b", stop="aab")
    assert (done.text, done.finish_reason) == ("a" * 48, "stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(oops"}, "regex cannot be used: .*unclosed group"),
        ({"grammar": "start: nothing"}, 'grammar cannot be used: .*unknown name: "nothing"'),
        ({"json_schema": {"type": "wizard"}}, "json_schema cannot be used: .*wizard"),
        ({"json_schema": "{oops"}, "json_schema cannot be used"),
        ({"json_schema": 3}, "json_schema is 3, expected a JSON schema"),
    ],
)
def test_a_constraint_that_cannot_be_kept_to_is_refused_at_once(
    model: Model, options: dict, message: str
) -> None:
    with pytest.raises(HRMEdgeError, match=message) as refused:
        model.stream("Hello", **options)
    assert "\n" not in str(refused.value)


def test_constraints_from_the_shell(run_cli, shared_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMAS[1]))
    for given in (path, path.read_text()):
        code, out, _ = run_cli("generate", shared_bundle, "Hello", "--json-schema", given)
        assert code == 0 and validator_for(SCHEMAS[1]).is_valid(json.loads(out))
    (tmp_path / "g.lark").write_text('start: "yes" | "no"')
    code, out, _ = run_cli("generate", shared_bundle, "Hello", "--grammar", tmp_path / "g.lark")
    assert code == 0 and out in ("yes\n", "no\n")
