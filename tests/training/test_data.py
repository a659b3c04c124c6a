"""From JSONL to token arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hrm_edge.errors import HRMEdgeError
from hrm_edge.lines import read_lines
from hrm_edge.prompt import SPECIAL_TOKENS, Tokenizer
from hrm_edge.training import data as module
from hrm_edge.training.data import tokenize
from hrm_edge.training.distributed import World
from hrm_edge.training.prepare import prepare
from hrm_edge.training.tokenizer import train_tokenizer, write_tokenizer
from tiny_training import TINY, letters, write_lines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["the quick brown fox", "counts 123 foxes", "über naïve ünïcode"] * 3
    write_tokenizer(train_tokenizer(texts, 300), folder, 64)
    return folder


def test_special_tokens_have_the_published_ids(tokenizer: Path) -> None:
    encode = Tokenizer(tokenizer).encode
    assert {name: encode(name) for name in SPECIAL_TOKENS} == {
        name: [i] for name, i in SPECIAL_TOKENS.items()
    }


@pytest.mark.parametrize("text", ["the fox", "  a\n\n b ", "12345", "日本 🦊", "über\x00\u0301"])
def test_every_text_survives_the_round_trip(tokenizer: Path, text: str) -> None:
    tok = Tokenizer(tokenizer)
    assert tok.decode(tok.encode(text)) == text


def test_digits_are_tokens_of_their_own(tokenizer: Path) -> None:
    assert len(Tokenizer(tokenizer).encode("123123")) == 6


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(HRMEdgeError, match=r"data.vocab_size is 100, expected at least 270"):
        train_tokenizer(["a"], 100)


def test_transformers_loads_the_tokenizer(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer)
    assert theirs.encode("the fox 12") == Tokenizer(tokenizer).encode("the fox 12")
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 6, 11)


def test_samples_are_prompt_answer_and_end(tmp_path: Path, tokenizer: Path) -> None:
    data = write_lines(
        tmp_path / "data.jsonl",
        [
            {"instruction": " the fox ", "response": "12", "condition": "synth,cot", "task": "b"},
            {"instruction": "dropped", "response": "  "},
            {"instruction": "brown", "response": "fox"},
        ],
    )
    samples = tokenize(data, tokenizer, tmp_path / "cache", longest=64)
    assert (len(samples), samples.dropped_empty, samples.tasks) == (2, 1, ("b", "all"))
    entry, tok = samples.table[0], Tokenizer(tokenizer)
    prompt = tok.encode("<|im_start|><|quad_end|><|object_ref_end|>the fox<|im_end|>")
    ids = samples.tokens[entry["start"] : entry["start"] + entry["length"]].tolist()
    assert ids == [*prompt, *tok.encode("12"), SPECIAL_TOKENS["<|box_end|>"]]
    assert entry["prompt"] == len(prompt) and samples.tasks[entry["task"]] == "b"
    assert isinstance(samples.tokens, np.memmap) and samples.tokens.dtype == np.uint16


def test_tokens_are_cached_by_content(tmp_path: Path, tokenizer: Path) -> None:
    data = letters(tmp_path / "data.jsonl", 5, seed=0)
    cache = tmp_path / "cache"
    for _ in range(2):
        tokenize(data, tokenizer, cache)
    assert len(list(cache.iterdir())) == 1
    tokenize(letters(data, 5, seed=1), tokenizer, cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: expected an object with instruction and response, found list"),
        ('{"instruction": "x"}', "line 2: response is missing, expected text"),
        ('{"instruction": 3, "response": "x"}', "line 2: instruction is 3, expected text"),
        ('{"instruction": " ", "response": "x"}', "line 2: instruction is empty"),
        (
            '{"instruction": "x", "response": "y", "condition": "fast"}',
            "line 2: unknown condition 'fast'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "x", "response": "y"}\n' + line + "\n")
    with pytest.raises(HRMEdgeError) as error:
        list(read_lines(path))
    assert message in str(error.value) and "data.jsonl" in str(error.value)


def test_no_usable_line(tmp_path: Path, tokenizer: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [{"instruction": "x", "response": ""}] * 3)
    with pytest.raises(HRMEdgeError, match=r"no usable line \(3 with an empty response, 0 longer"):
        tokenize(data, tokenizer, tmp_path / "cache")
    with pytest.raises(HRMEdgeError, match="no such data file"):
        list(read_lines(tmp_path / "missing.jsonl"))


def test_a_sample_longer_than_the_row(tmp_path: Path, tokenizer: Path) -> None:
    short, long = {"instruction": "x", "response": "y"}, {"instruction": "x" * 99, "response": "y"}
    data = write_lines(tmp_path / "data.jsonl", [short, long])
    with pytest.raises(
        HRMEdgeError, match=r"line 2: the sample takes \d+ tokens, expected at most"
    ):
        tokenize(data, tokenizer, tmp_path / "cache", longest=32)
    kept = tokenize(data, tokenizer, tmp_path / "cache", longest=32, too_long="drop")
    assert (len(kept), kept.dropped_long) == (1, 1)


def test_a_file_is_hashed_in_pieces_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set may be larger than the memory, and the first process need not read it twice."""
    data = letters(tmp_path / "data.jsonl", 100, 0)
    counted, original = list[Path](), module._fingerprint
    monkeypatch.setattr(module, "PIECE", 7)
    monkeypatch.setattr(
        module, "_fingerprint", lambda path, *rest: (counted.append(path), original(path, *rest))[1]
    )
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} is read whole"))
    world = World(0, 1, torch.device("cpu"))
    corpus = prepare(TINY, data, None, tmp_path / "run", world)
    assert counted == [data] and len(corpus.train) > 0
