"""The shipped JSON Schema describes every manifest that export writes, and no damaged one."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from hrm_edge.bundle import Manifest
from hrm_edge.export import Recipe, export
from hrm_edge.export.recipe import GPTQ, Calibration
from tiny_models import Shape, write_model

SCHEMA = json.loads((files("hrm_edge") / "data" / "manifest.schema.json").read_text())
VALID = jsonschema_rs.Draft202012Validator(SCHEMA)
SMALL = Calibration(tokens=60)
BUNDLES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "float": {"recipe": Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)},
    "float16": {"dtype": "fp16", "kv_bits": 16},
    "mixed": {"target_bits": 4.5, "calibration": SMALL, "kv_bits": 4, "kv_h_bits": 8},
    "gptq": {"method": GPTQ(symmetric=False), "calibration": SMALL, "rotate": True},
    "pte": {"target": "executorch", "contexts": [64]},
    "gguf": {"target": "gguf", "gguf_type": "q5_0", "gate": None},
}
TEMPLATES = {
    "turns": "{% for m in messages %}<{{ m.content }}>{% endfor %}",
    "null": "{{ messages[0].content | upper }}",
}


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


@pytest.mark.parametrize("kind", BUNDLES)
def test_every_kind_of_bundle_fits(kind: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", Shape(layers=2))
    raw = read(export(path, tmp_path / "bundle", **BUNDLES[kind]).path)
    VALID.validate(raw)
    assert raw.keys() <= SCHEMA["properties"].keys()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_chat_templates_fit(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES[kind])
    raw = read(export(checkpoint, tmp_path / "bundle", gate=None).path)
    VALID.validate(raw)
    assert (raw["prompt_format"] is None) == (kind == "null")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kv_cache", "bytes_per_token"), "x"),
        (("kv_cache", "dtype"), "object"),
        (("model", "hidden_size"), -64),
        (("files", "../out"), {"size": 1, "sha256": "0" * 64}),
        (("max_seq_len",), 1),
        (("quantization", "bits"), 3),
        (("format_version",), 2),
    ],
)
def test_damage_does_not_fit(shared_bundle: Path, path: tuple[str, ...], value: object) -> None:
    raw = read(shared_bundle)
    VALID.validate(raw)
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALID.is_valid(raw)


def test_the_schema_names_what_the_code_reads() -> None:
    assert SCHEMA["properties"].keys() - {"format_version"} == Manifest.__dataclass_fields__.keys()
