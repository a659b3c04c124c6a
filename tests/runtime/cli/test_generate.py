"""`generate` from the shell: options, several answers, batches, prompt caches, interruption."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import locked
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.cli.interrupt import interruptible


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


def test_options_reach_the_model(run_cli, model: Model, shared_bundle: Path) -> None:
    flags = ["--temp", 1.1, "--seed", 4, "--presence-penalty", 0.5, "--logit-bias", "65=9"]
    flags += ["--stop", "AA", "--no-speculation", "--json", "--logprobs", 1]
    code, out, _ = run_cli("generate", shared_bundle, "Hello", "-n", 30, *flags)
    expected = model.generate(
        "Hello",
        max_tokens=30,
        temperature=1.1,
        seed=4,
        presence_penalty=0.5,
        logit_bias={65: 9.0},
        stop="AA",
        speculate=False,
    )
    got = json.loads(out)
    assert (code, got["text"], got["finish_reason"]) == (0, expected.text, expected.finish_reason)
    assert [row["token"] for row in got["logprobs"]] == expected.tokens
    assert all(len(row["top_logprobs"]) == 1 for row in got["logprobs"])


def test_samples_come_likeliest_first(run_cli, shared_bundle: Path) -> None:
    options = ("-n", 4, "--temp", 1, "--seed", 1, "--samples", 3, "--json")
    code, out, _ = run_cli("generate", shared_bundle, "Hello", *options)
    rows = [json.loads(line) for line in out.splitlines()]
    means = [row["logprob"] / row["stats"]["completion_tokens"] for row in rows]
    assert code == 0 and len(rows) == 3 and means == sorted(means, reverse=True)


def test_a_prompt_cache_is_made_and_used(run_cli, shared_bundle: Path, tmp_path: Path) -> None:
    options = ("-n", 5, "--prompt-cache", tmp_path / "p.kv", "--stats")
    first = run_cli("generate", shared_bundle, "Hello", *options)
    again = run_cli("generate", shared_bundle, "Hello", *options)
    assert first[:2] == again[:2]
    assert "prefill cached" in again[2] and "prefill cached" not in first[2]


def test_a_batch_answers_every_line(
    run_cli, model: Model, shared_bundle: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "Hello", "id": 7},
        {"prompt": "Hi", "max_tokens": 2, "condition": "synth,cot"},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"prompt": "x" * 300},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    code, out, err = run_cli("generate", shared_bundle, "--batch", path, "-n", 5)
    hello, short, chat, long = map(json.loads, out.splitlines())
    assert hello["text"] == chat["text"] == model.generate("Hello", max_tokens=5).text
    assert hello["id"] == 7 and short["usage"]["completion"] == 2
    assert "max_context is 256" in long["error"] and "text" not in long
    assert code == 1 and "1 of 4 prompts failed" in err


def many(path: Path, count: int) -> list[dict]:
    rows = [{"prompt": f"Say {i}", "max_tokens": 3 + i % 5} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_a_batch_in_rows_comes_in_its_order(run_cli, shared_bundle: Path, tmp_path: Path) -> None:
    rows = many(path := tmp_path / "in.jsonl", 12)
    code, out, _ = run_cli("generate", shared_bundle, "--batch", path, "--parallel", 4)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row["id"] for row in found] == list(range(1, 13))
    assert [row["usage"]["completion"] for row in found] == [row["max_tokens"] for row in rows]


def test_a_batch_that_was_killed_goes_on(run_cli, shared_bundle: Path, tmp_path: Path) -> None:
    many(path := tmp_path / "in.jsonl", 60)
    out = tmp_path / "out.jsonl"
    call = [sys.executable, "-m", "hrm_edge", "generate", shared_bundle, "--batch", path]
    running = subprocess.Popen([*call, "--parallel", "2", "--out", out])
    while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    running.kill()
    running.wait()
    before = out.read_bytes()
    held = before[: before.rfind(b"\n") + 1]
    out.write_bytes(held + b'{"prompt": "Say 59", "id": 60, "te')  # cut off in the middle
    assert run_cli("generate", shared_bundle, "--batch", path, "-o", out, "--parallel", 2)[0] == 0
    assert out.read_bytes().startswith(held)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == list(range(1, 61))
    again = out.read_bytes()
    assert run_cli("generate", shared_bundle, "--batch", path, "-o", out)[0] == 0
    assert out.read_bytes() == again, "nothing was left to do"


def test_what_cannot_be_gone_on_from_is_refused(
    run_cli, shared_bundle: Path, tmp_path: Path
) -> None:
    many(path := tmp_path / "in.jsonl", 2)
    out = tmp_path / "out.jsonl"

    def refused(text: str, *flags: object) -> str:
        out.write_text(text)
        code, _, err = run_cli("generate", shared_bundle, "--batch", path, "-o", out, *flags)
        assert code == 1 and err.count("\n") == 1 and out.read_text() == text
        return err

    assert "out.jsonl:1: an answer to another prompt" in refused('{"prompt": "No", "id": 1}\n')
    assert "out.jsonl:1: not an answer of this command" in refused("[1]\n")
    assert "out.jsonl:1: not valid JSON" in refused("oops\n")
    assert "rows (--parallel) is 65, expected 1 to 64" in refused("", "--parallel", 65)
    with out.open("ab") as held:
        assert locked(held)
        code, _, err = run_cli("generate", shared_bundle, "--batch", path, "-o", out)
        assert code == 1 and "another process writes it" in err
    code, _, err = run_cli("generate", shared_bundle, "Hi", "--parallel", 2)
    assert code == 1 and "--out and --parallel are for --batch" in err
    path.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}')
    assert "two lines have the id 1" in refused("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a", "id": [1]}', "in.jsonl:1: id is [1], expected a number or text"),
        ('{"prompt": "a"}\n{oops', "in.jsonl:2: not valid JSON"),
        ('{"text": "a"}', "in.jsonl:1: expected an object with either prompt or messages"),
        ('{"prompt": 3}', "in.jsonl:1: prompt is 3, expected text"),
        ('{"prompt": "a\\ud800"}', "in.jsonl:1: has half a character (a lone surrogate)"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused(
    run_cli, shared_bundle: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    code, out, err = run_cli("generate", shared_bundle, "--batch", path)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logit-bias", "A=1"], "logit-bias is 'A=1', expected ID=NUMBER"),
        (["--json-schema", "{oops"], "not valid JSON"),
        (["--json-schema", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--samples", 0], "n is 0, expected 1 to 1024"),
        (["--draft", "nowhere"], "nowhere: no such bundle"),
        (["--presence-penalty", 5], "presence_penalty is 5"),
    ],
)
def test_a_flag_out_of_range_is_one_line(run_cli, shared_bundle: Path, flags, message) -> None:
    code, out, err = run_cli("generate", shared_bundle, "Hello", *flags)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1


def test_interrupting_ends_a_prefill_at_once(model: Model) -> None:
    """The consumer's KeyboardInterrupt closes the iterator while the engine computes."""
    pieces = interruptible(model.stream("y" * 200, max_tokens=50), model.cancel)
    next(pieces)
    pieces.close()
    assert threading.active_count() < 20
    assert len(model.generate("Hello", max_tokens=3).tokens) == 3


def test_an_error_in_the_thread_reaches_the_consumer(model: Model) -> None:
    def failing():
        yield next(model.stream("Hello", max_tokens=2))
        raise HRMEdgeError("gone")

    pieces = interruptible(failing(), model.cancel)
    next(pieces)
    with pytest.raises(HRMEdgeError, match="gone"):
        next(pieces)
