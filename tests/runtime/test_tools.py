"""The grammar of calls: what it lets through token by token, and what it does not."""

from pathlib import Path
from typing import Any

import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import Tokenizer
from hrm_edge.runtime.decoding.guided import Grammar, Guide
from hrm_edge.runtime.decoding.tools import Tool, call_grammar
from hrm_edge.tool_format import ToolFormat

TINY = Path(__file__).parents[2] / "hrm_edge" / "data" / "hrm_tiny"
JSON = ToolFormat(
    '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", None, "\n", True
)
BARE = ToolFormat(
    "<|im_start|>call:", "", "<|im_end|>", "<|object_ref_start|>", "", True
)  # the marks are special tokens
PLAIN = ToolFormat("<tool_call>", "", "</tool_call>", "'", None, True)  # and here they are text
FORMS = [JSON, BARE, PLAIN]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "kind": {"enum": ["a", 1, None, True]},
        "share": {"type": ["number", "null"]},
        "list": {"type": "array", "items": {"type": "string"}},
        "deep": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    Tool("find_it", SCHEMA),
    Tool("now", {"type": "object", "properties": {}, "additionalProperties": False}),
]
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("now", {}),
    ("find_it", {"city": "Oslo"}),
    ("find_it", {"city": "São 1", "days": -12}),
    ("find_it", {"city": "", "kind": None}),
    ("find_it", {"city": "b", "share": 1.5, "list": ["p", "q r"], "deep": {"x": False}}),
    ("find_it", {"city": "b", "days": 0, "kind": "a", "list": []}),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("later", {}),
    ("now", {"city": "Oslo"}),
    ("find_it", {}),
    ("find_it", {"city": 3}),
    ("find_it", {"city": "b", "days": "two"}),
    ("find_it", {"city": "b", "kind": "b"}),
    ("find_it", {"city": "b", "deep": {}}),
    ("find_it", {"city": "b", "more": 1}),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY)


def accepts(
    tokenizer: Tokenizer, form: ToolFormat, text: str, free: bool = False, several: bool = False
) -> bool:
    source = call_grammar(form, TOOLS, tokenizer.special, free, several)
    (end,) = tokenizer.encode("<|box_end|>")
    guide = Guide(TINY / "tokenizer.json", tokenizer.vocab_size, [end])
    guide.prepare()
    matcher = guide.matcher(Grammar("grammar", source))
    assert not isinstance(matcher, str), matcher
    taken = all(matcher.consume_token(token) for token in tokenizer.encode(text))
    return taken and matcher.is_accepting()


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_keep_to_their_schema(tokenizer: Tokenizer, form: ToolFormat) -> None:
    for name, arguments in RIGHT:
        text = form.call(name, arguments)
        assert accepts(tokenizer, form, text), text
        assert not accepts(tokenizer, form, text[:-3]), text
    for name, arguments in WRONG:
        text = form.call(name, arguments)
        assert not accepts(tokenizer, form, text), text


@pytest.mark.parametrize("form", FORMS)
def test_text_and_several_calls_where_they_may_be(tokenizer: Tokenizer, form: ToolFormat) -> None:
    one, two = (form.call(*RIGHT[i]) for i in (0, 1))
    assert accepts(tokenizer, form, "Well: ok?", free=True)
    assert accepts(tokenizer, form, "Well.\n" + one, free=True)
    assert accepts(tokenizer, form, one, free=True)
    assert not accepts(tokenizer, form, "Well: ok?") and not accepts(tokenizer, form, "Well." + one)
    assert not accepts(tokenizer, form, "Well." + form.call(*WRONG[0]), free=True)
    both = one + (form.between or "") + two
    assert accepts(tokenizer, form, both, several=True) == (form.between is not None)
    assert not accepts(tokenizer, form, both)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "a+"}, "t.parameters.x: 'pattern' cannot be held to"),
        ({"type": "date"}, r"a type is missing or unknown \('date'\)"),
        ({}, r"a type is missing or unknown \(None\)"),
        ([], "t.parameters.x is no JSON schema"),
        ({"enum": [{}]}, "enum has {}, expected simple values"),
        ({"enum": 3}, "enum is no list of values"),
        ({"type": "object", "properties": []}, "properties or required are of a wrong kind"),
        ({"type": "object", "properties": {"a:b": {}}}, "'a:b' cannot be a bare key"),
        ({"type": {}}, "a type is missing or unknown"),
    ],
)
def test_schemas_that_bare_arguments_cannot_keep_to(schema: Any, says: str) -> None:
    tool = Tool("t", {"type": "object", "properties": {"x": schema}})
    with pytest.raises(HRMEdgeError, match=says) as refused:
        call_grammar(BARE, [tool], {}, False, False)
    assert refused.value.parameter == "tools"


@pytest.mark.parametrize("form", FORMS)
def test_parameters_are_an_object_of_some_depth(form: ToolFormat) -> None:
    with pytest.raises(HRMEdgeError, match="expected the schema of an object"):
        call_grammar(form, [Tool("t", {"type": "string"})], {}, False, False)
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(2000):
        deep = {"type": "object", "properties": {"x": deep}}
    with pytest.raises(HRMEdgeError, match="nested too deeply"):
        call_grammar(form, [Tool("t", deep)], {}, False, False)
