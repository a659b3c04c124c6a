"""The rules of the house. A rule that fails here names the file and the import at fault.

1. Rooms (training, export, runtime) stand on the ground (hrm_edge) and know nothing of each other.
2. Inside a room arrows run down: FLOORS lists its folders and files from the bottom up, and a file
   imports only what stands below it or beside it in its own folder. Nothing imports in a circle.
3. What is shared by name (a tensor, a graph's input, a file of the bundle) is spelled in names.py.
4. Folders stay small enough to read: 13 entries, files of 400 lines.
5. The device's path never meets torch, and `--help` loads nothing heavy.
"""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrm_edge import names
from hrm_edge.__main__ import VERBS

ROOT = Path(__file__).parents[1]
ROOMS = ("training", "export", "runtime")
# From the bottom up; what stands in one line may not import one another.
FLOORS: dict[str, list[set[str]]] = {
    "export": [
        {"recipe"},
        {"targets"},
        {"reference"},
        {"quantize"},
        {"to_onnx", "to_executorch", "to_gguf"},
        {"evaluate"},
        {"convert"},
        {"cli_export"},
    ],
    "runtime": [
        {"settings"},
        {"session"},
        {"decoding", "chat", "bench"},
        {"engine"},
        {"server", "suites"},
        {"cli"},
    ],
}
SHARED = re.compile(
    r"""["'](model\.(onnx|pte|ptd|gguf)[\w.]*|manifest\.json|tokenizer(_config)?\.json|"""
    r"""attn\.(gqkv|o)_proj[\w.]*|mlp\.(gate_up|down)_proj[\w.]*|lm_head\.weight|model\.embed_tokens[\w.]*|"""
    r"""past_key_values[\w.]*|input_ids|logits_to_keep)["'](?!: names\.)"""
)


def sources(*rooms: str) -> list[Path]:
    found = [p for room in rooms or ("hrm_edge", *ROOMS) for p in (ROOT / room).rglob("*.py")]
    assert found, rooms
    return sorted(found)


def imports(path: Path, runtime_only: bool = False) -> Iterator[tuple[int, str]]:
    """(level, module) of every import in `path`, at any depth of its code.

    `runtime_only` leaves out those that serve only the type checker.
    """
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if runtime_only and id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            if not node.module:
                yield from ((node.level, alias.name) for alias in node.names)


def relative_targets(path: Path, runtime_only: bool = False) -> Iterator[tuple[str, ...]]:
    """Paths below the repository of what `path` imports relatively: ("export", "recipe")."""
    home = path.relative_to(ROOT).parts[:-1]
    for level, module in imports(path, runtime_only):
        if level and module:
            yield (*home[: len(home) - level + 1], *module.split("."))


def test_rooms_stand_on_the_ground_alone() -> None:
    mapped = tuple(f"hrm_edge.{room}" for room in ROOMS)
    for path in sources():
        room = path.relative_to(ROOT).parts[0]
        for level, module in imports(path):
            assert level or not module.startswith((*mapped, *(f"{r}." for r in ROOMS))), (
                path,
                module,
            )
            assert not (level and room == "hrm_edge"), (path, "the ground imports absolutely")
        for target in relative_targets(path):
            assert target[0] == room, (path, target)


@pytest.mark.parametrize("room", FLOORS)
def test_arrows_run_down_inside_a_room(room: str) -> None:
    floor = {name: i for i, line in enumerate(FLOORS[room]) for name in line}
    entries = {p.stem for p in (ROOT / room).iterdir() if p.suffix == ".py" or p.is_dir()}
    assert entries - {"__init__", "__pycache__"} == floor.keys(), "FLOORS and the folder differ"
    for path in sources(room):
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        for target in relative_targets(path):
            if own != "__init__" and target[1] != own:
                assert floor[target[1]] < floor[own], (path, target)


def test_nothing_imports_in_a_circle() -> None:
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in sources(*ROOMS):
        if path.stem != "__init__":
            key = path.relative_to(ROOT).with_suffix("").parts
            graph[key] = set(relative_targets(path, runtime_only=True))
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert module not in trail, (*trail, module)
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_shared_names_are_spelled_once() -> None:
    for path in sources():
        if path.name not in ("names.py", "import_reference.py"):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                assert not SHARED.search(line), (path, number, line.strip())
    assert names.place(names.linear("H", 3, names.GQKV)) == ("H", 3)


def test_folders_and_files_are_small() -> None:
    for room in ("export", "runtime"):
        for folder in (ROOT / room, *(p for p in (ROOT / room).rglob("*") if p.is_dir())):
            held = [p for p in folder.iterdir() if p.name != "__pycache__"]
            assert len(held) <= 13, (folder, len(held))
    lengths = []
    for path in sources():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = (n for n in ast.walk(ast.parse(text)) if isinstance(n, functions))
        lengths += [(n.end_lineno or 0) - n.lineno + 1 for n in found]
    assert statistics.median(lengths) < 10


def test_pyproject_lists_every_folder_that_holds_code() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).parts for path in sources()}
    expected = {".".join(p if p[0] == "hrm_edge" else ("hrm_edge", *p)) for p in folders}
    assert sorted(listed) == sorted(expected)


def test_only_the_model_of_the_ground_imports_torch() -> None:
    found = {p.name for p in sources("hrm_edge") if (0, "torch") in set(imports(p))}
    assert found == {"model.py"}


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
        f"export({str(shared_checkpoint)!r}, 'gguf', 'gguf')\n"
        "print(len(load('bundle', max_context=64).generate('Hi', max_tokens=4).tokens))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert 1 <= int(done.stdout) <= 4
