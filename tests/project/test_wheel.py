"""The wheel, installed in a fresh environment and used from another folder."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


ROOMS = ("training", "export", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "-w", out, ROOT], out)
    (found,) = out.glob("hrm_edge-*.whl")
    return found


def test_the_wheel_holds_what_git_knows_and_nothing_else(wheel: Path) -> None:
    listed = run(["git", "ls-files", "hrm_edge", *ROOMS], ROOT).splitlines()
    expected = {name if name.startswith("hrm_edge/") else f"hrm_edge/{name}" for name in listed}
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.network
@pytest.mark.slow
def test_the_wheel_converts_and_answers_without_torch(
    wheel: Path, shared_checkpoint: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    bin_dir = tmp_path / "env" / "bin"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([bin_dir / "pip", "install", "-q", f"{wheel}[export]"], elsewhere)
    installed = run([bin_dir / "pip", "list", "--format=freeze"], elsewhere).lower()
    assert "onnxruntime==" in installed and "torch" not in installed
    run([bin_dir / "hrm-edge", "export", shared_checkpoint, "-o", "bundle"], elsewhere)
    answer = run([bin_dir / "hrm-edge", "generate", "bundle", "Hello", "-n", "4"], elsewhere)
    assert answer.endswith("\n")
    code = (
        "from hrm_edge.export.to_executorch.magic_norm_op import SOURCE; print(SOURCE.read_text())"
    )
    assert "hrm::magic_norm" in run([bin_dir / "python", "-c", code], elsewhere)
    code = "import hrm_edge.training, hrm_edge.export, hrm_edge.runtime as r; print(r.__file__)"
    assert str(tmp_path / "env") in run([bin_dir / "python", "-c", code], elsewhere)


def run(command: list, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
