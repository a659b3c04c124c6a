"""A directory appears whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_finished_directory_has_the_usual_permissions(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        (partial / "a").chmod(0o600)
    assert names(tmp_path) == {"out"}
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        raise error
    assert names(tmp_path) == set()


def test_an_existing_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    with pytest.raises(HRMEdgeError, match="--force"), new_directory(out):
        pass
    with pytest.raises(ValueError), new_directory(out, force=True):
        raise ValueError
    assert (out / "manifest.json").read_text() == "old"
    with new_directory(out, force=True) as partial:
        (partial / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_force_never_removes_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(HRMEdgeError, match="holds other files"),
        new_directory(tmp_path, force=True),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_what_took_the_name_meanwhile_is_never_removed(
    tmp_path: Path, force: bool, empty: bool
) -> None:
    out = tmp_path / "out"

    def export() -> None:
        with new_directory(out, force) as partial:
            (partial / "manifest.json").write_text("new")
            out.mkdir()
            if not empty:
                (out / "thesis.txt").write_text("precious")

    if force and empty:
        export()
        assert (out / "manifest.json").read_text() == "new"
        return
    with pytest.raises(HRMEdgeError, match=r"left as it is; what was finished here is .*out-2"):
        export()
    assert [file.name for file in out.iterdir()] == ([] if empty else ["thesis.txt"])
    assert (tmp_path / "out-2" / "manifest.json").read_text() == "new"
    assert names(tmp_path) == {"out", "out-2"}


def test_of_two_that_make_one_name_both_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(HRMEdgeError, match="out-2"),
        new_directory(out) as slow,
    ):
        (slow / "manifest.json").write_text("slow")
        with new_directory(out) as quick:
            (quick / "manifest.json").write_text("quick")
    assert (out / "manifest.json").read_text() == "quick"
    assert (tmp_path / "out-2" / "manifest.json").read_text() == "slow"


def test_a_read_only_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(HRMEdgeError, match="cannot be written"),
        new_directory(tmp_path / "file" / "out"),
    ):
        pass


def test_a_disk_that_is_full_halfway_leaves_nothing(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    # A limit on file sizes stands in for the full disk: the write fails in the same place.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_export(shared_checkpoint, tmp_path / "out", preexec_fn=limit)
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 1
    assert stderr.startswith("Error: ") and len(stderr.splitlines()) == 1
    assert "cannot be written" in stderr
    assert names(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    shared_checkpoint: Path, tmp_path: Path, number: int
) -> None:
    # The quantizer is slowed down, so that the signal finds the export at work.
    slow = "import time, hrm_edge.export.quantize.plan as p; q = p.quantize\n"
    slow += "p.quantize = lambda *a: (time.sleep(0.5), q(*a))[1]\n"
    process = run_export(shared_checkpoint, tmp_path / "out", before=slow)
    deadline = time.monotonic() + 60
    while not names(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert names(tmp_path) and "out" not in names(tmp_path), "a partial directory is being filled"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr and "Aborted" not in stderr
    assert names(tmp_path) == set()


def run_export(checkpoint: Path, out: Path, before: str = "", **options) -> subprocess.Popen[str]:
    """Start `hrm-edge export` in a process of its own, after the statements `before`."""
    code = f"import sys; {before}\nfrom hrm_edge.__main__ import main\n"
    code += f"sys.argv[1:] = ['export', {str(checkpoint)!r}, '-o', {str(out)!r}]\nmain()"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, **options)
