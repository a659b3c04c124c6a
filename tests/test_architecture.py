"""The rules of the house: arrows run one way, and the device's path never meets torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from hrm_edge.__main__ import VERBS

ROOT = Path(__file__).parent.parent
ROOMS = ("training", "export", "runtime")


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def sources() -> list[Path]:
    return [path for room in ("hrm_edge", *ROOMS) for path in (ROOT / room).rglob("*.py")]


def test_no_room_imports_another_and_the_ground_imports_none() -> None:
    mapped = tuple(f"hrm_edge.{room}" for room in ROOMS)
    for path in sources():
        for name in imports(path):
            assert not name.startswith((*mapped, *ROOMS, "..")), (path, name)
            if path.parent.name == "hrm_edge":
                assert not name.startswith("."), (path, name)


def test_rooms_are_flat() -> None:
    for room in ROOMS:
        assert all(path.parent == ROOT / room for path in (ROOT / room).rglob("*.py")), room


def test_only_the_model_of_the_ground_imports_torch() -> None:
    found = {path.name for path in sources() if "torch" in imports(path)}
    ground = {path.name for path in (ROOT / "hrm_edge").glob("*.py")}
    assert found & ground == {"model.py"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    code = (
        "import sys; from hrm_edge.__main__ import cli\n"
        f"cli(['{verb}', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'starlette'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_export_and_generate_work_where_torch_cannot_be_imported(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from hrm_edge.export import export; from hrm_edge.runtime import load\n"
        f"export({str(shared_checkpoint)!r}, 'bundle')\n"
        "print(len(load('bundle', max_context=64).generate('Hi', max_tokens=4).tokens))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert 1 <= int(done.stdout) <= 4
