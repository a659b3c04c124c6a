"""Models by name: hrm-tiny is exported once, listed, and removed; hrm-g2p is a bundle as it is."""

import json
import re
from pathlib import Path

import pytest

from hrm_edge import shipped
from hrm_edge.bundle import Bundle

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HRM_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_name_is_a_bundle_made_once(run_cli, cache: Path) -> None:
    assert run_cli("generate", "hrm-tiny", "Spell this word backward: RIVER")[:2] == (0, "REVIR\n")
    (bundle,) = shipped.bundles()
    assert bundle.name == "hrm-tiny" and bundle.is_relative_to(cache)
    before = (bundle / "manifest.json").stat().st_mtime_ns
    assert run_cli("generate", "hrm-tiny", "Spell this word backward: STONE")[1] == "ENOTS\n"
    assert (bundle / "manifest.json").stat().st_mtime_ns == before
    Bundle.open(bundle, verify=True)
    code, out, _ = run_cli("eval", "hrm-tiny", "--reference", "hrm-tiny", "--samples", 3)
    assert code == 0 and "3 of 48 samples" in out
    code, out, _ = run_cli("list")
    assert code == 0 and out.count("hrm-tiny") >= 2 and str(bundle) in out
    assert run_cli("rm", "hrm-tiny")[0] == 0
    assert shipped.bundles() == []
    code, _, told = run_cli("rm", "hrm-tiny")
    assert code == 1 and "no bundle of that name is kept" in told


def test_a_name_is_a_checkpoint_too(run_cli, tmp_path: Path) -> None:
    facts = json.loads(run_cli("inspect", "hrm-tiny", "--json")[1])
    assert facts["kind"] == "checkpoint"
    assert run_cli("export", "hrm-tiny", "-o", tmp_path / "out", "--no-report")[0] == 0
    assert json.loads(run_cli("inspect", tmp_path / "out", "--json")[1])["kind"] == "bundle (onnx)"


def test_a_bundle_that_ships_needs_no_export(run_cli, tmp_path: Path) -> None:
    assert run_cli("generate", "hrm-g2p", "smartphone")[:2] == (0, "S M AA1 R T F OW2 N\n")
    assert shipped.bundles() == []
    facts = json.loads(run_cli("inspect", "hrm-g2p", "--verify", "--json")[1])
    assert facts["kind"] == "bundle (onnx)" and facts["parameters"]["total"] == 3448320
    assert sum(facts["files"].values()) < 3e6
    assert re.search(r"^hrm-g2p, bundle +[\d.]+ MB  .+hrm-g2p$", run_cli("list")[1], re.MULTILINE)
    for arguments in (("export", "hrm-g2p", "-o", tmp_path / "x"), ("rm", "hrm-g2p")):
        code, _, told = run_cli(*arguments)
        assert code == 1 and told.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_directory_of_that_name_is_meant_first(run_cli, tmp_path: Path) -> None:
    (tmp_path / "hrm-tiny").mkdir()
    code, _, told = run_cli("generate", "hrm-tiny", "Hello")
    assert code == 1 and "hrm-tiny: not a bundle" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "CHECKPOINT", "Hi"], "a checkpoint, not a bundle; hrm-edge export"),
        (["generate", "FILE.gguf", "Hi"], "a file for llama.cpp"),
        (["export", "BUNDLE", "-o", "x"], "a bundle; give the checkpoint that it was made from"),
        (["inspect", "CHECKPOINT", "--verify"], "a checkpoint, which has no hashes to --verify"),
        (["genrate", "x"], "Did you mean 'generate'?"),
        (["generate", "BUNDLE", "Hi", "--logprobs", "2"], "--logprobs shows with --json alone"),
        (["generate", "BUNDLE", "Hi", "--prompt-cache", "no/x"], "no directory no to keep it in"),
    ],
)
def test_the_wrong_thing_is_named(
    run_cli,
    shared_checkpoint: Path,
    shared_bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "FILE.gguf").write_bytes(b"GGUF")
    places = {"CHECKPOINT": shared_checkpoint, "BUNDLE": shared_bundle}
    code, _, told = run_cli(*(places.get(a, a) for a in arguments))
    assert code in (1, 2) and message in told


def test_a_cut_answer_says_so(run_cli, shared_bundle: Path) -> None:
    code, _, told = run_cli("generate", shared_bundle, "Hello", "-n", 4)
    assert code == 0
    assert told == "(The answer was cut after 4 tokens; --max-tokens 8 leaves room for more.)\n"
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 9})
    code, _, told = run_cli("generate", shared_bundle, "Hello", "-n", 4, "--json-schema", schema)
    assert code == 1 and "not what was asked for: it was cut after 4 tokens" in told
    assert run_cli("generate", shared_bundle, "Hello", "-n", 4, "--json")[2] == ""


def test_a_prompt_comes_through_a_pipe(run_cli, shared_bundle: Path) -> None:
    piped = run_cli("generate", shared_bundle, "-n", 4, input="Hello")
    assert piped[:2] == run_cli("generate", shared_bundle, "Hello", "-n", 4)[:2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(run_cli, shell: str) -> None:
    code, out, _ = run_cli("completion", shell)
    assert code == 0 and "_HRM_EDGE_COMPLETE" in out


def test_inspect_says_what_there_is_to_say(run_cli, shared_bundle: Path) -> None:
    code, out, _ = run_cli("inspect", shared_bundle, "--verify")
    assert code == 0
    assert "all equal the manifest's" in out and "rotated" not in out and "None" not in out
    memory = next(line for line in out.splitlines() if line.startswith("memory"))
    assert "256 tokens" in memory


def test_a_gguf_file_is_written_where_it_is_asked_for(
    run_cli, shared_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    code, said, _ = run_cli("export", shared_checkpoint, "-t", "gguf", "-o", out)
    assert code == 0 and out.read_bytes().startswith(b"GGUF")
    assert f"Try: llama-server -m {out} -b 256 -ub 256 -np 1 --no-cache-prompt" in said
    code, _, told = run_cli("export", shared_checkpoint, "-t", "gguf", "-o", out)
    assert code == 1 and "model.gguf exists; choose another name" in told
    out.write_bytes(b"old")
    assert run_cli("export", shared_checkpoint, "-t", "gguf", "-o", out, "--force")[0] == 0
    assert out.read_bytes().startswith(b"GGUF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]
    code, _, told = run_cli("generate", out, "Hello")
    assert code == 1 and "a file for llama.cpp" in told


def test_export_and_eval_give_one_figure(
    run_cli, shared_checkpoint: Path, shared_bundle: Path
) -> None:
    made = Bundle.open(shared_bundle).manifest.quality
    arguments = ("eval", shared_bundle, "--reference", shared_checkpoint)
    later = json.loads(run_cli(*arguments, "--json")[1])
    for key in ("data", "lines", "samples", "tokens"):
        assert later[key] == made[key]
    for key in ("reference", "bundle"):
        assert later[key] == pytest.approx(made[key], abs=1e-6)
    out = run_cli(*arguments)[1]
    assert f"{made['samples']} of {made['lines']} samples" in out
    assert "On these texts the bundle is " in out and "The original itself is lost on them" in out
