"""The boards' documents: memory by the fit check, the service by systemd and CLI, links."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hrm_edge.bundle import BundleFile, KVCache, Manifest
from hrm_edge.config import HRMTextConfig
from hrm_edge.fit import largest_context, need

DOCS = Path(__file__).parents[2] / "docs"
BITS = (32, 8, 4)
WEIGHTS = 681_328_640  # bytes of model.onnx.data: XL's shape in int4, group 128, head in 8 bits
SHAPE = {
    "model_type": "hrm_text",
    "vocab_size": 65536,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "H_cycles": 2,
    "L_cycles": 3,
    "max_position_embeddings": 4096,
    "prefix_lm": True,
}


@pytest.fixture
def manifests(shared_bundle: Path) -> list[Manifest]:
    """HRM-Text-1B in int4, by the bits of its KV cache."""
    model = HRMTextConfig.from_dict(SHAPE, "the test")
    data = {"model.onnx.data": BundleFile(WEIGHTS, "")}
    any_manifest = replace(Manifest.read(shared_bundle), model=model, files=data, max_seq_len=4096)
    return [replace(any_manifest, kv_cache=KVCache.of(model, bits)) for bits in BITS]


def rows(title: str) -> list[list[str]]:
    """The cells of the table whose heading row begins with `title`."""
    lines = (DOCS / "raspberry-pi.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title}"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]
    ]


def test_memory_by_context_is_what_the_fit_check_says(manifests: list[Manifest]) -> None:
    found = rows("context")
    assert len(found) == 5
    for context, *sizes in found:
        expected = [round(need(manifest, int(context)).total / 2**20) for manifest in manifests]
        assert [*map(int, sizes)] == expected, context


def test_context_by_memory_is_what_the_fit_check_says(manifests: list[Manifest]) -> None:
    found = rows("memory left")
    assert len(found) == 4
    for room, _, *contexts in found:
        left = int(float(room.removesuffix(" GiB")) * 2**30)
        expected = [largest_context(manifest, left) for manifest in manifests]
        assert [*map(int, contexts)] == expected, room


def test_the_services_command_is_one_that_serve_accepts(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit(), re.MULTILINE)
    program, verb, bundle, *options = shlex.split(line)
    assert Path(program).name == "hrm-edge" and Path(bundle).parent == Path(program).parent.parent
    code, _, told = run_cli(verb, tmp_path, *options, "--port", 0)
    assert code == 1 and "not a bundle" in told, told  # a wrong option would be 2


def unit() -> str:
    return (DOCS / "hrm-edge.service").read_text(encoding="utf-8")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program
    path = tmp_path / "hrm-edge.service"
    path.write_text(unit().replace("/opt/hrm-edge/bin/hrm-edge", program))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert "hrm-edge.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["raspberry-pi", "jetson", "phone-python", "integration"])
def test_links_lead_somewhere(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        path, _, anchor = target.partition("#")
        file = (DOCS / path) if path else DOCS / f"{name}.md"
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {t.lower().replace(" ", "-") for t in titles}, target
