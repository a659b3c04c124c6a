"""Several processes at one place: exports, weight caches, trainings, a server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hrm_edge import files
from hrm_edge.bundle import Bundle
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.files import new_directory, replacing, scratch_for, sole_writer
from hrm_edge.names import MANIFEST
from hrm_edge.runtime import load
from tiny_models import Shape, write_model
from tiny_training import letters

pytestmark = pytest.mark.slow

LOAD = """
import sys
from hrm_edge.runtime import load
model = load(sys.argv[1], threads=1, weight_cache=sys.argv[2])
print(model.generate("Hello", max_tokens=8).tokens)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, told = process.communicate(timeout=300)
    return process.returncode, out, told


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_exports_to_one_new_name_are_both_kept(shared_checkpoint: Path, tmp_path: Path) -> None:
    command = ("-m", "hrm_edge", "export", shared_checkpoint, "-o", tmp_path / "out", "--no-report")
    done = [ended(process) for process in [start(*command) for _ in range(2)]]
    codes = sorted(code for code, _, _ in done)
    if codes == [0, 1]:
        (told,) = (told for code, _, told in done if code)
        if "exists" not in told:  # it began before the other had ended
            assert "out was made by something else meanwhile and is left as it is" in told
            Bundle.open(tmp_path / "out-2", verify=True)
    else:
        raise AssertionError(done)
    Bundle.open(tmp_path / "out", verify=True)
    assert set(names(tmp_path)) <= {"out", "out-2"}


def test_two_forced_exports_leave_one_whole_bundle(shared_checkpoint: Path, tmp_path: Path) -> None:
    export(shared_checkpoint, tmp_path / "out", gate=None)
    options = ("-o", tmp_path / "out", "--no-report", "--force")
    both = [
        start("-m", "hrm_edge", "export", shared_checkpoint, *options, "--kv-bits", bits)
        for bits in (8, 32)
    ]
    found = [ended(process) for process in both]
    assert [code for code, _, _ in found] == [0, 0], found
    assert Bundle.open(tmp_path / "out", verify=True).manifest.kv_cache.bits in (8, 32)
    assert names(tmp_path) == ["out"]


def test_what_was_replaced_is_not_cleared_by_another_before_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that begins just as another exchanges its directory for the old one."""
    out, renamed = tmp_path / "out", files._renamed
    for content in ("old", "new"):
        with new_directory(out, force=True) as partial:
            (partial / MANIFEST).write_text(content)
        assert (out / MANIFEST).read_text() == content

        def meanwhile(old: Path, new: Path, flag: int) -> bool:
            done = renamed(old, new, flag)
            with scratch_for(out):
                return done

        monkeypatch.setattr(files, "_renamed", meanwhile)
    assert names(tmp_path) == ["out"]


def test_a_bundle_is_replaced_under_a_reader(shared_checkpoint: Path, tmp_path: Path) -> None:
    """Its files are mapped, so a loaded model goes on as before; a new one is the new bundle's."""
    export(shared_checkpoint, tmp_path / "out", gate=None)
    old = load(tmp_path / "out", threads=1)
    before = old.generate("Hello", max_tokens=8).tokens
    other = write_model(tmp_path / "other", Shape(layers=2, seed=9))
    export(other, tmp_path / "out", gate=None, force=True)
    assert old.generate("Hello", max_tokens=8).tokens == before
    assert load(tmp_path / "out", threads=1).generate("Hello", max_tokens=8).tokens != before


def test_two_processes_make_one_weight_cache(shared_bundle: Path, tmp_path: Path) -> None:
    both = [start("-c", LOAD, shared_bundle, tmp_path / "cache") for _ in range(2)]
    found = [ended(process) for process in both]
    plain = load(shared_bundle, threads=1).generate("Hello", max_tokens=8).tokens
    assert [(code, out) for code, out, _ in found] == [(0, f"{plain}\n")] * 2, found
    assert len(names(tmp_path / "cache")) == 1


def test_a_second_training_into_one_directory_is_refused(tmp_path: Path) -> None:
    data = letters(tmp_path / "train.jsonl", 100, seed=0)
    config = tmp_path / "config.yaml"
    raw = {"preset": "tiny", "run": {"steps": 2, "threads": 1, "batch_tokens": 512}}
    config.write_text(yaml.safe_dump(raw | {"data": {"row_length": 32}}))
    command = ("-m", "hrm_edge", "train", config, "--data", data, "-o", tmp_path / "run")
    with sole_writer(tmp_path / "run"):
        code, _, told = ended(start(*command))
    assert code == 1 and told.count("\n") == 1
    assert f"{tmp_path / 'run'}: another process is writing there" in told
    assert names(tmp_path / "run") == []


def test_what_a_killed_process_left_goes_when_the_same_is_made_again(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from hrm_edge.files import new_directory
with new_directory(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert ended(start("-c", code, tmp_path / "out"))[0] == -9
    (left,) = names(tmp_path)
    assert left.startswith(".out.") and left.endswith(".partial")
    with scratch_for(tmp_path / "out") as mine:
        assert names(tmp_path) == [mine.name]
        with scratch_for(tmp_path / "out") as another:  # a living process's is left alone
            assert set(names(tmp_path)) == {mine.name, another.name}
    with new_directory(tmp_path / "out") as partial:
        (partial / "whole").write_text("x")
    assert names(tmp_path) == ["out"]


def test_a_file_that_cannot_be_written_keeps_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text("old")
    with pytest.raises(HRMEdgeError, match="what it held is untouched"), replacing(path) as partial:
        partial.write_text("half")
        raise OSError(5, os.strerror(5))
    assert path.read_text() == "old" and names(tmp_path) == ["chat.json"]
