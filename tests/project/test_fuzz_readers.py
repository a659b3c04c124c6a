"""Every reader of files from strangers, fed with damaged ones: it reads them or says why in a line.

`just fuzz` tries 240 times as many as CI does.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import RAW, damaged_bytes, damaged_json

from hrm_edge.bundle import Bundle
from hrm_edge.chat_template import ChatTemplate, read_chat_template
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.export.to_gguf.read import open_gguf
from hrm_edge.lines import read_lines
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.cli import batch
from hrm_edge.runtime.cli.conversation import read_messages

pytestmark = pytest.mark.slow

MORE = int(os.environ.get("HRM_EDGE_FUZZ", "1"))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
CONFIG = json.dumps(
    HRMTextConfig(288, 64, 96, 1, 2, 32, 2, 2, 256, 8.0, 0.125, eos_token_ids=(11,)).to_dict()
)


def fuzz(examples: int) -> settings:
    """So many examples; CI's are the same each time."""
    return settings(
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        suppress_health_check=SLOW,
        max_examples=examples * MORE,
    )


def survives(read: Callable[[], object]) -> None:
    """`read` works, or raises an HRMEdgeError of one line that a terminal can show."""
    try:
        read()
    except HRMEdgeError as error:
        told = str(error)
        assert told and "\n" not in told and len(told) < 2000, told[:300]


def all_of(rows: Iterable[object]) -> None:
    for _ in rows:
        pass


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@fuzz(300)
@given(damaged_json(CONFIG))
@example('{"H_cycles": 1000000}')
@example(CONFIG.replace('"H_cycles": 2', '"H_cycles": 1000000'))
@example(CONFIG.replace('"num_hidden_layers": 1', '"num_hidden_layers": 1000000000'))
@example(CONFIG.replace('"max_position_embeddings": 256', '"max_position_embeddings": 1000000000'))
@example(RAW[-2])
@example(RAW[2])
def test_config(scratch: Path, text: str) -> None:
    path = scratch / "config.json"
    path.write_text(text)
    survives(lambda: HRMTextConfig.from_file(path))


@fuzz(400)
@given(st.data())
def test_manifest(scratch: Path, shared_bundle: Path, data: st.DataObject) -> None:
    """Opened, and, where that is possible, loaded and asked."""
    bundle = scratch / "bundle"
    if not bundle.exists():
        shutil.copytree(shared_bundle, bundle)
    text = (shared_bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(data.draw(damaged_json(text)))
    survives(lambda: Bundle.open(bundle, verify=True))


@fuzz(30)
@given(st.data())
def test_a_bundle_whose_manifest_lies_is_refused_or_runs(
    scratch: Path, shared_bundle: Path, data: st.DataObject
) -> None:
    bundle = scratch / "lying"
    if not bundle.exists():
        shutil.copytree(shared_bundle, bundle)
    text = (shared_bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(data.draw(damaged_json(text)))
    survives(lambda: load(bundle, threads=1, max_context=64).generate("Hi", max_tokens=2))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("kv_cache", "bytes_per_token", "x"),
        ("kv_cache", "dtype", "object"),
        ("kv_cache", "slots", 7),
        ("kv_cache", "bytes_per_token", 1),
        ("model", "vocab_size", 300),
        ("model", "H_cycles", 1),
        (None, "max_seq_len", 100_000),
        (None, "eos_token_ids", [10**6]),
        (None, "eos_token_ids", "11"),
        (None, "quality", {"fast": {"recommended": 3}}),
        (None, "prompt_format", {"start": 1}),
        (None, "files", {}),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, shared_bundle: Path, section: str | None, key: str, value: object
) -> None:
    bundle = shutil.copytree(shared_bundle, tmp_path / "bundle")
    raw = json.loads((bundle / "manifest.json").read_text())
    (raw if section is None else raw[section])[key] = value
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(HRMEdgeError, match=r"manifest\.json"):
        load(bundle, threads=1)


@fuzz(300)
@given(st.data())
def test_safetensors(scratch: Path, shared_checkpoint: Path, data: st.DataObject) -> None:
    checkpoint = scratch / "checkpoint"
    if not checkpoint.exists():
        shutil.copytree(shared_checkpoint, checkpoint)
    whole = (shared_checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data.draw(damaged_bytes(whole)))

    def read() -> None:
        opened = Checkpoint.open(checkpoint)
        for name in opened.names():
            opened.float32(name)

    survives(read)


@pytest.fixture(scope="module")
def gguf(shared_checkpoint: Path, scratch: Path) -> bytes:
    export(shared_checkpoint, scratch / "gguf", target="gguf", gate=None)
    return (scratch / "gguf" / "model.gguf").read_bytes()


@fuzz(150)
@given(st.data())
def test_gguf(scratch: Path, gguf: bytes, data: st.DataObject) -> None:
    path = scratch / "model.gguf"
    path.write_bytes(data.draw(damaged_bytes(gguf, head=16384)))

    def read() -> None:
        opened = open_gguf(path, scratch / "tokenizer")
        for name in opened.names():
            opened.float32(name)

    (scratch / "tokenizer").mkdir(exist_ok=True)
    survives(read)


def test_a_gguf_of_nested_arrays_is_refused(scratch: Path, gguf: bytes) -> None:
    number = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    key = b"x.y"
    head = gguf[:16] + (1).to_bytes(8, "little") + len(key).to_bytes(8, "little") + key
    nested = (9).to_bytes(4, "little") + number * 50_000
    path = scratch / "nested.gguf"
    path.write_bytes(head + nested)
    with pytest.raises(HRMEdgeError, match=r"nested\.gguf: not a GGUF file, damaged or truncated"):
        open_gguf(path, scratch)


@pytest.fixture(scope="module")
def prefix(model: Model, scratch: Path) -> bytes:
    model.generate("What is kept, and where?", max_tokens=2)
    model.save_prefix(scratch / "prefix.kv")
    return (scratch / "prefix.kv").read_bytes()


@fuzz(150)
@given(st.data())
def test_prompt_cache(scratch: Path, model: Model, prefix: bytes, data: st.DataObject) -> None:
    """What is taken over can be gone on from."""
    path = scratch / "damaged.kv"
    head, rest = prefix.split(b"\n", 1)
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged_json(head.decode())).encode() + b"\n" + rest)
    else:
        path.write_bytes(data.draw(damaged_bytes(prefix, head=len(head))))

    def read() -> None:
        model.restore_prefix(path)
        assert all(type(i) is int and 0 <= i < 288 for i in model.session.prefix)
        model.session.decode([20])

    survives(read)


@fuzz(200)
@given(damaged_json('{"chat_template": "{{ messages[0].content }}", "bos_token": "<s>"}'))
@example('{"chat_template": [{"name": 3}, 4, {"name": "default"}]}')
def test_tokenizer_config(scratch: Path, text: str) -> None:
    (scratch / "template").mkdir(exist_ok=True)
    (scratch / "template" / "tokenizer_config.json").write_text(text)
    survives(lambda: read_chat_template(scratch / "template"))


PIECES = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "for", "in", "endfor", "if", "else", "endif", "set"),
    *("range(9999999)", "messages", "loop.index", "m", "=", "+", "*", "**", "~", "(", ")", "|"),
    *("'ab'", "99999999", "[0]", ".content", "['role']", "join", "length", "tojson", "raise_x"),
    *("{% for a in range(99999) %}", "{% endfor %}", "{{ 'a' * 99999999 }}", "macro", "include"),
)


@fuzz(300)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map(" ".join))
@example("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
@example("{{ 'a' * 9999999999 }}")
@example("{{ 9 ** 99999999 }}")
@example("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
@example("{% set ns = namespace(x='aaaa') %}" + "{% set ns.x = ns.x + ns.x %}" * 40)
def test_chat_template(source: str) -> None:
    def render() -> None:
        template = ChatTemplate(source, {}, Path("chat_template.jinja"))
        template.render([{"role": "user", "content": "Hi"}])

    survives(render)


LINE = '{"instruction": "Add 1 and 2", "response": "3", "condition": "direct", "task": "sum"}'


@fuzz(200)
@given(damaged_json(LINE))
@example(RAW[-2])
def test_lines(scratch: Path, text: str) -> None:
    path = scratch / "lines.jsonl"
    path.write_text(f"{LINE}\n{text}\n")
    survives(lambda: all_of(read_lines(path)))
    survives(lambda: batch.read(path))


@fuzz(150)
@given(damaged_json('{"messages": [{"role": "user", "content": "Hi"}]}'))
@example(RAW[-2])
def test_saved_chats_and_batches(scratch: Path, text: str) -> None:
    path = scratch / "rows.jsonl"
    path.write_text(text.replace("\n", " "))
    survives(lambda: batch.read(path))
    survives(lambda: read_messages(path))


@pytest.fixture(scope="module")
def pte_bundle(shared_checkpoint: Path, scratch: Path) -> Path:
    return export(shared_checkpoint, scratch / "pte", target="executorch", gate=None).path


def test_programs(pte_bundle: Path, scratch: Path) -> None:
    """ExecuTorch reads these itself, so another process does: it may not end by a signal."""
    code = """
import sys
from pathlib import Path
from hrm_edge.errors import HRMEdgeError
from hrm_edge.runtime import load
for path in sys.argv[1:]:
    try:
        load(Path(path), threads=1).generate("Hi", max_tokens=2)
    except HRMEdgeError as error:
        assert "\\n" not in str(error), error
print("survived")
"""
    rng, bundles = random.Random(0), []
    (program,) = pte_bundle.glob("*.pte")
    for number in range(12 * MORE):
        bundle = shutil.copytree(pte_bundle, scratch / f"pte{number}")
        data = bytearray(program.read_bytes())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(4096 if rng.random() < 0.7 else len(data))
            data[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (bundle / program.name).write_bytes(data)
        raw = json.loads((bundle / "manifest.json").read_text())
        raw["files"][program.name]["size"] = len(data)
        (bundle / "manifest.json").write_text(json.dumps(raw))
        bundles.append(str(bundle))
    done = subprocess.run([sys.executable, "-c", code, *bundles], capture_output=True, text=True)
    assert done.stdout.endswith("survived\n"), (done.returncode, done.stderr[-2000:])
