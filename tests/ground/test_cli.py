"""The command line: text on stdout, one line and exit code 1 for mistakes, 2 for wrong usage."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file

from hrm_edge.bundle import Manifest
from tiny_models import Shape, write_model


def test_from_checkpoint_to_answer(run_cli, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = run_cli("export", checkpoint, "-o", tmp_path / "b", "--bits", 4, "--kv-bits", 8)
    assert code == 0 and "onnx" in out
    code, out, err = run_cli("generate", tmp_path / "b", "Hello", "-n", 5, "--stats")
    assert code == 0 and out.endswith("\n")
    assert re.search(r"8 \+ \d tokens, ttft .* prefill .* decode .* anonymous memory \d+ MiB", err)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["-t", "gguf", "--bits", 8],
            "--bits does not apply to -t gguf; it is of -t onnx and -t executorch",
        ),
        (["-t", "gguf", "--kv-h-bits", 8], "--kv-h-bits does not apply to -t gguf"),
        (["--type", "q8_0"], "--type does not apply to -t onnx; it is of -t gguf"),
    ],
)
def test_an_option_of_another_target_is_refused(
    run_cli, checkpoint: Path, tmp_path: Path, options: list, line: str
) -> None:
    code, _, err = run_cli("export", checkpoint, "-o", tmp_path / "b", *options)
    assert code == 1 and line in err and err.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_the_prompt_comes_from_argument_stdin_or_file(
    run_cli, shared_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("Hello")
    first = run_cli("generate", shared_bundle, "Hello", "-n", 5)
    assert first == run_cli("generate", shared_bundle, "-", "-n", 5, input="Hello\n")
    assert first == run_cli("generate", shared_bundle, "-f", tmp_path / "prompt.txt", "-n", 5)
    assert run_cli("generate", shared_bundle, "Hello", "-f", tmp_path / "prompt.txt")[0] == 2
    code, _, err = run_cli("generate", shared_bundle)  # a pipe that is empty
    assert code == 1 and "the prompt is empty" in err
    code, _, err = run_cli("generate", shared_bundle, "-f", tmp_path / "none.txt")
    assert (code, err.count("\n")) == (1, 1)


def test_json_is_one_object(run_cli, shared_bundle: Path) -> None:
    code, out, _ = run_cli("generate", shared_bundle, "Hello", "-n", 5, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["stats"]["completion_tokens"] == 5


def test_inspect_shows_sizes_and_costs(
    run_cli, shared_checkpoint: Path, shared_bundle: Path
) -> None:
    facts = json.loads(run_cli("inspect", shared_checkpoint, "--json")[1])
    assert facts["parameters"]["total"] == 2 * 2 * (5 * 64 * 64 + 3 * 64 * 96) + 2 * 288 * 64
    assert facts["passes"] == "L L H L L H"
    assert facts["kv_bytes_per_token"]["8 bits"] == 2 * 12 * 64
    facts = json.loads(run_cli("inspect", shared_bundle, "--json")[1])
    assert facts["kv_bytes_per_token"] == 2 * 12 * 64
    assert facts["files"]["model.onnx.data"] > 0
    assert "passes" in run_cli("inspect", shared_bundle)[1]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: _cut(p / "model.safetensors"), "damaged or truncated"),
        (lambda p: _poison(p), "NaN or infinite"),
        (lambda p: _replace(p / "config.json", "hrm_text", "llama"), "model_type is 'llama'"),
        (
            lambda p: _replace(p / "config.json", '"hidden_size": 64', '"hidden_size": 128'),
            "expected",
        ),
        (lambda p: (p / "config.json").unlink(), "no such file"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(
    run_cli, checkpoint: Path, tmp_path: Path, break_it, message: str
) -> None:
    break_it(checkpoint)
    code, out, err = run_cli("export", checkpoint, "-o", tmp_path / "b")
    assert (code, out) == (1, "")
    assert err.startswith("Error: ") and err.count("\n") == 1 and message in err
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "none", "Hi"], 1, "no such bundle directory"),
        (["generate", "BUNDLE", ""], 1, "the prompt is empty"),
        (["generate", "BUNDLE", "x" * 300], 1, "max_context is 256"),
        (["generate", "BUNDLE", "Hi", "--temp", "-1"], 1, "temperature is -1"),
        (["generate", "BUNDLE", "Hi", "--temp", "warm"], 2, "is not a valid float"),
        (["generate", "BUNDLE", "Hi", "-t", "0"], 1, "threads is 0, expected 1 to "),
        (["generate", "BUNDLE", "Hi", "-c", "100000"], 1, "max_context is 100000"),
        (["export", "CHECKPOINT", "-o", "b", "--bits", "3"], 1, "bits is 3, expected one of 4, 8"),
        (["export", "CHECKPOINT", "-o", "b", "-t", "coreml"], 2, "is not"),
        (["export", "CHECKPOINT", "-o", "CHECKPOINT"], 1, "choose another name"),
        (["export", "nowhere", "-o", "b"], 1, "not a Hugging Face id"),
        (["inspect", "nowhere"], 1, "no such checkpoint directory"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line(
    run_cli, shared_checkpoint: Path, shared_bundle: Path, arguments, code: int, message: str
) -> None:
    names = {"BUNDLE": shared_bundle, "CHECKPOINT": shared_checkpoint}
    got, out, err = run_cli(*(names.get(a, a) for a in arguments))
    assert (got, out) == (code, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("Error: ") and message in last
    assert code == 2 or err.count("\n") == 1


def test_debug_shows_the_traceback(run_cli) -> None:
    from hrm_edge.errors import HRMEdgeError

    with pytest.raises(HRMEdgeError):
        run_cli("--debug", "generate", "none", "Hi")


def test_split_bf16_checkpoints_work_too(run_cli, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", Shape(layout="split", dtype=torch.bfloat16, tied=True))
    assert run_cli("export", path, "-o", tmp_path / "b")[0] == 0
    assert run_cli("generate", tmp_path / "b", "Hi", "-n", 3, "--verify")[0] == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _poison(path: Path) -> None:
    tensors = {name: t.copy() for name, t in load_file(path / "model.safetensors").items()}
    tensors["lm_head.weight"][0, 0] = float("inf")
    save_file(tensors, path / "model.safetensors")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_checkpoint_without_a_tokenizer_is_exported_and_said(
    run_cli, checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    code, _, err = run_cli("export", checkpoint, "-o", tmp_path / "b")
    assert code == 0 and "has no tokenizer.json" in err and "generate, chat and serve" in err
    code, out, _ = run_cli("bench", tmp_path / "b", "-p", 4, "-n", 2, "-r", 1)
    assert code == 0 and "pp4" in out
    code, _, err = run_cli("generate", tmp_path / "b", "Hi")
    assert code == 1 and "the tokenizer is missing" in err


def test_a_bundle_is_opened_once(
    run_cli, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = list[Path](), Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda path: (opened.append(path), read(path))[1])
    assert run_cli("generate", shared_bundle, "Hi", "-n", 2)[0] == 0
    assert opened == [shared_bundle]
