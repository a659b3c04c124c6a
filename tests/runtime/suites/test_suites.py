"""Suites over small files in the data sets' own layouts: prompts, scores, resuming, refusals."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import load
from hrm_edge.runtime.suites.answering import Told
from hrm_edge.runtime.suites.data import Data
from hrm_edge.runtime.suites.report import compare, summary
from hrm_edge.runtime.suites.run import Choice, Run, named
from hrm_edge.runtime.suites.tasks import SUITES, Question
from question_files import write_all
from serving import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub")
    write_all(path)
    return path


class Dictated:
    """Answers as told, by the question's id."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts, self.asked = texts, list[tuple[Question, int]]()

    def answers(self, questions: Iterable[tuple[Question, int]]) -> Iterator[tuple[Question, Told]]:
        for question, most in questions:
            self.asked.append((question, most))
            yield question, Told(self.texts.get(question.id, ""), 1, "stop")


def scored(home: Path, names: str, texts: dict[str, str]) -> tuple[dict[str, Any], Dictated]:
    suites, dictated = named(names), Dictated(texts)
    rows = Run(suites, Data(home), Choice()).rows(lambda: dictated, {})
    return summary(rows, suites), dictated


def test_free_answers(home: Path) -> None:
    texts = {"gsm8k/0": r"\boxed{5}", "gsm8k/1": "1001", "gsm8k/2": "one"}
    texts |= {"math/0": r"\boxed{0}", "math/3": r"\boxed{\frac{6}{2}}", "math/6": "6"}
    texts |= {"drop/0": "Ann", "drop/1": "four", "drop/2": "3 May"}
    found, dictated = scored(home, "gsm8k,math,drop", texts)
    assert found["gsm8k"]["score"] == pytest.approx(2 / 3)
    assert found["math"]["questions"] == 7 and found["math"]["score"] == pytest.approx(3 / 7)
    assert found["drop"]["em"] == pytest.approx(2 / 3)  # one of two spans is half an F1
    assert found["drop"]["score"] == pytest.approx((0.5 + 1 + 1) / 3)
    prompts = {question.id: (question, most) for question, most in dictated.asked}
    question, most = prompts["gsm8k/0"]
    assert (question.prompt, question.condition, most) == ("What is 2 + 3?", "synth,cot", 3072)
    question, _ = prompts["drop/1"]
    shots = "".join(f"P{i}\nQ: Q?\nA: {i}\n\n" for i in range(3))
    assert question.prompt == shots + "Ann ran 4 miles.\nQ: How far?\nA:"
    assert question.condition == "direct"


def test_lettered_answers(home: Path) -> None:
    texts = {"mmlu/0": "B", "mmlu/1": "x", "arc_c/0": " D", "arc_c/1": "D"}
    texts |= {"hellaswag/0": "A", "hellaswag/1": "A", "winogrande/0": "A", "boolq/0": "A"}
    found, dictated = scored(home, "mmlu,arc_c,hellaswag,winogrande,boolq", texts)
    assert found["mmlu"]["score"] == pytest.approx((1 + 1 / 4) / 2)
    assert found["mmlu"]["strict"] == 0.5 and found["mmlu"]["invalid"] == 1
    assert found["arc_c"]["score"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["hellaswag"]["score"] == 0.5
    assert found["winogrande"]["score"] == found["boolq"]["score"] == pytest.approx((1 + 1 / 2) / 2)
    prompts = {question.id: question.prompt for question, most in dictated.asked if most == 1}
    assert len(prompts) == len(dictated.asked) == 10
    assert prompts["mmlu/0"] == (
        "".join(
            f"algebra {i}?\nA. a\nB. b\nC. c\nD. d\nAnswer: {'ABCD'[i % 4]}\n\n" for i in range(5)
        )
        + "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert prompts["mmlu/1"].count("high_school_european_history") == 3
    assert prompts["arc_c/1"].count("Answer: ") == 25
    assert prompts["arc_c/1"].endswith("Q\nA. x\nB. y\nC. z\nAnswer:")
    assert prompts["hellaswag/0"].count("Answer: ") == 10
    assert prompts["winogrande/0"].endswith("0: _ fell\nA. Ann\nB. Bo\nAnswer:")
    assert prompts["boolq/1"].endswith("Numbers.\nis 1 even?\nA. Yes\nB. No\nAnswer:")
    assert prompts["boolq/1"].count("Answer: ") == 5


def test_which_questions(home: Path) -> None:
    questions = SUITES["math"].questions("math", Data(home))
    whole = Choice().of(questions)
    few = Choice(limit=4, seed=1).of(questions)
    assert len(few) == 4 and few == Choice(limit=4, seed=1).of(questions) != whole[:4]
    parts = [q for i in (1, 2, 3) for q in Choice(4, 1, (i, 3)).of(questions)]
    assert sorted(q.id for q in parts) == sorted(q.id for q in few)


def test_two_runs_are_compared_by_question() -> None:
    def row(i: int, value: float, text: str = "") -> dict[str, Any]:
        return {"id": f"x/{i}", "suite": "x", "value": value, "text": text}

    new = [row(0, 1), row(1, 1), row(2, 0), row(3, 1, "same"), row(9, 1)]
    old = [row(0, 0), row(1, 0, "b"), row(2, 1), row(3, 1, "same"), row(8, 1)]
    assert compare(new, old) == {
        "x": {"questions": 4, "better": 2, "worse": 1, "texts": 1, "p": 1.0}
    }
    with pytest.raises(HRMEdgeError, match="no question was answered in both"):
        compare([row(0, 1)], [row(1, 1)])


def command(bundle: object, home: Path, *more: object) -> list[str]:
    call = [sys.executable, "-m", "hrm_edge", "eval", bundle, "--data-dir", home, "-t", 1, *more]
    return [str(part) for part in call]


def test_a_run_that_was_killed_ends_with_the_same_table(
    run_cli, shared_bundle: Path, home: Path, tmp_path: Path
) -> None:
    suites = ("--suite", "gsm8k,math,boolq,drop", "--parallel", 2)
    whole = subprocess.run(
        command(shared_bundle, home, *suites, "--json"), capture_output=True, check=True
    )
    out = tmp_path / "answers.jsonl"
    call = command(shared_bundle, home, *suites, "-o", out)
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    while running.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.005)
    running.kill()
    running.wait()
    with out.open("ab") as file:
        file.write(b'{"id": "gsm8k/')  # cut off
    arguments = [*suites, "-o", out, "--data-dir", home, "-t", 1, "--json"]
    code, told, _ = run_cli("eval", shared_bundle, *arguments)
    assert code == 0
    assert json.loads(told)["suites"] == json.loads(whole.stdout)["suites"]
    code, told, _ = run_cli("eval", shared_bundle, *arguments[:-1], "--against", out)
    assert "gsm8k: of 3 questions in both, 0 answers differ; 0 better, 0 worse" in told
    assert "did not fit" in told, "the prompts of DROP and MATH fill 256 tokens"
    lines = told.splitlines()
    assert " ".join(lines[0].split()) == "suite questions score 95 % interval strict paper"
    assert lines[1].startswith("gsm8k") and " 84.7 " in lines[1]


def test_ones_own_questions(run_cli, shared_bundle: Path, tmp_path: Path) -> None:
    model, path = load(shared_bundle, threads=1), tmp_path / "own.jsonl"
    answers = [model.generate(text, max_tokens=3072).text for text in ("Hello", "Hi")]
    rows = [{"instruction": "Hello", "response": answers[0] or "?"}]
    rows += [{"instruction": "Hi", "response": answers[1] + " and more"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    code, told, _ = run_cli("eval", shared_bundle, "--suite", path, "--parallel", 1, "--json")
    found = json.loads(told)
    assert code == 0 and found["suites"]["own"]["score"] == 0.5
    flags = ("--suite", path, "-o", tmp_path / "out.jsonl", "--parallel", 1)
    assert run_cli("eval", shared_bundle, *flags)[0] == 0
    path.write_text(path.read_text().replace("Hi", "Ho"))
    assert "own/1 was another question then" in refused(run_cli, shared_bundle, *flags)
    assert [row["text"] for row in found["answers"]] == answers


def test_a_server_is_asked_as_a_bundle_is(
    run_cli,
    shared_checkpoint: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    bundle = export(shared_checkpoint, tmp_path / "b", recipe=recipe, gate=None).path
    flags = ("--suite", "boolq,gsm8k,drop", "--data-dir", home, "--json")
    own = json.loads(run_cli("eval", bundle, *flags, "--parallel", 1)[1])
    with serving(load(bundle, threads=1, rows=2), ["secret"]) as running:
        code, told, err = run_cli("eval", running.url, *flags, "--api-key", "secret")
        assert code == 0, err
        assert json.loads(told)["answers"] == own["answers"]
        assert json.loads(told)["suites"] == own["suites"]
        refused = run_cli("eval", running.url, *flags, "--api-key", "wrong")
        assert refused[0] == 1 and "answered 401" in refused[2]
        refused = run_cli("eval", running.url, *flags, "--threads", 2)
        assert refused[0] == 1 and "--threads is the server's own" in refused[2]
        monkeypatch.setenv("HRM_EDGE_CONFIG", str(tmp_path / "config.toml"))
        (tmp_path / "config.toml").write_text('threads = 1\nkv-share = "cycle"\n')
        assert run_cli("eval", running.url, *flags, "--api-key", "secret")[0] == 0
        monkeypatch.setenv("HRM_EDGE_API_KEY", "secret")
        assert run_cli("eval", bundle, "--samples", 1, "--no-sources")[0] == 0


class Failing(BaseHTTPRequestHandler):
    """A server of ours that answers twice and then fails."""

    left = 2

    def do_GET(self) -> None:
        card = {"id": "m", "owned_by": "hrm-edge", "max_context": 4096}
        self._send(200, {"data": [card]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).left -= 1
        if type(self).left < 0:
            self._send(500, {"error": {"message": "the server failed; see its log"}})
            return
        ours = {"finish_reason": "length", "completion_tokens": 1}
        self._send(200, {"choices": [{"text": "A"}], "hrm_edge": ours})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_server_that_fails_loses_nothing(run_cli, home: Path, tmp_path: Path) -> None:
    server, out = ThreadingHTTPServer(("127.0.0.1", 0), Failing), tmp_path / "answers.jsonl"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    flags = ("--suite", "boolq,winogrande", "--data-dir", home, "-o", out, "--parallel", 1)
    code, _, err = run_cli("eval", url, *flags)
    assert code == 1 and err.count("\n") == 1
    assert "/v1/completions: answered 500 (the server failed; see its log)" in err
    assert out.read_bytes().count(b"\n") == 3, "what they are answers of, and two answers"
    Failing.left = 100
    code, told, _ = run_cli("eval", url, *flags)
    assert code == 0 and "winogrande" in told and Failing.left == 98
    server.shutdown()
    server.server_close()
    code, _, err = run_cli("eval", url, "--suite", "boolq", "--data-dir", home)
    assert code == 1 and "no answer" in err and err.count("\n") == 1


def refused(run_cli: Any, bundle: Path, *flags: object) -> str:
    code, out, err = run_cli("eval", bundle, *flags)
    assert (code, out) == (1, "") and err.count("\n") == 1, (code, out, err)
    return err


def test_what_cannot_be_is_one_line(
    run_cli, shared_bundle: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*flags: object) -> str:
        return refused(run_cli, shared_bundle, *flags)

    assert "suite is 'gsm9k', expected gsm8k, math, drop" in no("--suite", "gsm9k")
    assert "suite 'gsm8k' is named twice" in no("--suite", "gsm8k,gsm8k")
    assert "no file of test in main/" in no("--suite", "gsm8k", "--data-dir", tmp_path)
    write_all(tmp_path)
    odd = tmp_path / "openai/gsm8k/main/test-00000-of-00001.parquet"
    odd.write_bytes((tmp_path / "google/boolq/data/train-00000-of-00001.parquet").read_bytes())
    dirs = ("--data-dir", tmp_path)
    (tmp_path / "Rowan/hellaswag/data/train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    assert "has no column 'ctx'" not in no("--suite", "hellaswag", *dirs)
    odd.unlink()
    (tmp_path / "openai/gsm8k/main/test.jsonl").write_text('{"question": "Q?"}\n')
    assert "(main; test): has no column 'answer', only question" in no("--suite", "gsm8k", *dirs)
    (tmp_path / "openai/gsm8k/main/test.jsonl").write_text('{"question": "Q?", "answer": "five"}')
    assert "gsm8k/0: its answer ends with 'five', no whole number" in no("--suite", "gsm8k", *dirs)
    here = ("--suite", "gsm8k", "--data-dir", home)
    assert "limit is 0, expected 1 or more" in no(*here, "--limit", 0)
    assert "shard is 5/4, expected such as 1/4" in no(*here, "--shard", "5/4")
    assert "shard is 'half', expected such as" in no(*here, "--shard", "half")
    assert "--max-kl is not for --suite" in no(*here, "--max-kl", 1)
    assert "--limit is for --suite alone" in no("--limit", 3)
    assert "rows (--parallel) is 65, expected 1 to 64" in no(*here, "--parallel", 65)
    assert "cannot be read" in no(*here, "--against", tmp_path / "none.jsonl")
    out = tmp_path / "out.jsonl"
    assert run_cli("eval", shared_bundle, *here, "-o", out, "--limit", 1)[0] == 0
    assert "its answers are of choice" in no(*here, "-o", out)
    plan = no(*here, "-o", out, "--limit", 1, "--kv-share", "cycle")
    assert "out.jsonl:1: its answers are of decoding" in plan
    from hrm_edge import memory

    monkeypatch.setattr(memory, "available", lambda: 1 << 10)
    assert "max_context 256 in 64 rows needs" in no(*here, "--parallel", 64)


def test_without_a_network_the_hub_is_one_line(
    run_cli, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    err = refused(run_cli, shared_bundle, "--suite", "gsm8k")
    assert "openai/gsm8k (main; test): cannot be had" in err and "--data-dir DIR" in err


def test_a_checkpoint_answers_in_float32(run_cli, shared_checkpoint: Path, home: Path) -> None:
    code, told, err = run_cli(
        "eval", shared_checkpoint, "--suite", "boolq", "--data-dir", home, "--json", "--parallel", 1
    )
    assert code == 0, err
    assert json.loads(told)["suites"]["boolq"]["questions"] == 2
