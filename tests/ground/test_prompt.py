"""The prefix as transformers' tokenizer would see it, conditions, and streaming of characters."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import Tokenizer, format_prompt, parse_conditions

TEXT = "naïve 🙂 日本語 x"


def test_ids_equal_those_of_transformers(shared_checkpoint: Path) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(shared_checkpoint / "tokenizer.json"))
    text = format_prompt(f"  {TEXT}\n", ["synth", "cot"])
    ids = Tokenizer(shared_checkpoint).encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ids[:3] == [6, 13, 9]
    assert ids[-1] == 7


def test_the_published_template() -> None:
    expected = "<|im_start|><|object_ref_start|>Hi<|im_end|>"
    assert format_prompt(" Hi ", ["direct"]) == expected
    assert format_prompt("Hi", []) == "<|im_start|>Hi<|im_end|>"


def test_conditions_compose_in_order() -> None:
    assert parse_conditions("synth, cot") == ("synth", "cot")
    assert parse_conditions("") == ()
    with pytest.raises(HRMEdgeError, match="unknown condition 'fast'; known are direct, cot"):
        parse_conditions("direct,fast")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(HRMEdgeError, match="the prompt is empty"):
        format_prompt(text)


def test_a_stream_yields_whole_characters(shared_checkpoint: Path) -> None:
    tokenizer = Tokenizer(shared_checkpoint)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(TEXT)]
    assert "".join(pieces) == TEXT
    assert "" in pieces, "bytes inside a character complete no text"
    assert "\ufffd" not in "".join(pieces)


def test_a_missing_or_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HRMEdgeError, match="missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(HRMEdgeError, match="not a tokenizer"):
        Tokenizer(tmp_path)
