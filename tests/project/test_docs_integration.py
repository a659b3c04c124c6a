"""The snippets of docs/integration.md that can be run here are run, word for word."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from hrm_edge.bundle import Manifest
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import load

pytestmark = [pytest.mark.slow, pytest.mark.network]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "web_demo"
GOLDEN = json.loads((ROOT / "android_demo" / "golden.json").read_text(encoding="utf-8"))
FIRST: dict[str, Any] = GOLDEN["vectors"][0]  # the prompt of the snippets
HEADERS = "libonnxruntime-dev_1.21.0+dfsg-1_arm64.deb"  # text for any processor
POOL = "http://deb.debian.org/debian/pool/main/o/onnxruntime/"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the snippets run: with the bundle tiny-int4 in it, and kv4h8, whose buffers differ."""
    directory = tmp_path_factory.mktemp("integration")
    tiny = ROOT / "hrm_edge" / "data" / "hrm_tiny"
    export(tiny, directory / "tiny-int4")
    export(tiny, directory / "kv4h8", recipe=Recipe(kv_bits=4, kv_h_bits=8), gate=None)
    return directory


def snippet(language: str) -> str:
    """The one block in `language` that is marked to be run."""
    text = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    (found,) = re.findall(
        rf"<!-- run -->\n```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return found


def run(command: list[Any], directory: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=directory, env=environment or None, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_with_genai(directory: Path) -> None:
    assert run([sys.executable, "-c", snippet("python")], directory) == "EUQARUP\n"


def test_javascript_with_node(directory: Path) -> None:
    if not (DEMO / "node_modules" / "onnxruntime-node").is_dir():
        run(["npm", "ci", "--ignore-scripts", "--prefix", DEMO], directory)
    (directory / "node_modules").symlink_to(DEMO / "node_modules")
    for bundle in ("tiny-int4", "kv4h8"):
        (directory / "answer.mjs").write_text(snippet("js").replace("tiny-int4", bundle))
        assert run(["node", "answer.mjs"], directory) == "EUQARUP\n"


def test_cpp_with_the_librarys_own_headers(directory: Path) -> None:
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (directory / "libonnxruntime.so").symlink_to(library)
    (directory / "libonnxruntime.so.1").symlink_to(library)
    (directory / "answer.cpp").write_text(snippet("cpp"))
    flags = ["-std=c++17", "-Wall", "-Werror", f"-I{headers(directory)}", "-L."]
    run(["g++", *flags, "answer.cpp", "-lonnxruntime", "-o", "answer"], directory)
    (end,) = Manifest.read(directory / "tiny-int4").eos_token_ids

    def answer(bundle: str, ids: list[int]) -> list[int]:
        command = ["./answer", f"{bundle}/model.onnx", end, *ids]
        return [*map(int, run(command, directory, LD_LIBRARY_PATH=str(directory)).split())]

    for vector in GOLDEN["vectors"][:5]:
        assert answer("tiny-int4", vector["ids"]) == vector["answers"]["8"]
    mixed = load(directory / "kv4h8", threads=1).generate(FIRST["prompt"])
    assert answer("kv4h8", FIRST["ids"]) == [*mixed.tokens]


def headers(directory: Path) -> Path:
    """ONNX Runtime's C++ headers: the system's, or else Debian's, unpacked here."""
    installed = Path("/usr/include/onnxruntime")
    if installed.is_dir():
        return installed
    assert shutil.which("g++") and shutil.which("ar"), "no C++ compiler: apt-get install g++"
    try:
        with urllib.request.urlopen(POOL + HEADERS.replace("+", "%2B"), timeout=60) as package:
            (directory / HEADERS).write_bytes(package.read())
    except OSError as error:
        pytest.skip(f"{HEADERS} cannot be had ({error})")
    run(["ar", "x", HEADERS, "data.tar.xz"], directory)
    with tarfile.open(directory / "data.tar.xz") as archive:
        archive.extractall(directory / "headers", filter="data")
    return directory / "headers" / "usr" / "include" / "onnxruntime"


def test_the_prompt_of_the_snippets_is_the_first_golden_vector() -> None:
    text = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    assert text.count(FIRST["prompt"]) >= 2
    assert " ".join(map(str, FIRST["ids"])) in text
