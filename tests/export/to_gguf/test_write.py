"""GGUF files in the prebuilt llama.cpp: logits, prefix, token ids, blocks, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from transformers import HrmTextForCausalLM

from benchmarks.llamacpp import Llama
from gguf_reading import TEXT, llamacpp_values, train_tokenizer
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export.quantize.grid import dequantize, quantize
from hrm_edge.export.quantize.plan import make_plan, round_weight
from hrm_edge.export.recipe import RTN, Format
from hrm_edge.export.targets import GGML_BLOCK, GGUFTarget
from hrm_edge.export.to_gguf.blocks import lay_out, q4_0_blocks, q4_0_codes, q8_0_codes
from hrm_edge.export.to_gguf.tokenizer import known_names
from hrm_edge.export.to_gguf.write import write_gguf
from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.prompt import Tokenizer as OurTokenizer
from tiny_models import VOCAB, Shape, write_model, write_tokenizer

pytestmark = pytest.mark.slow

SHAPES = [
    Shape(),
    Shape(layers=2, H=1, L=3, tied=True, layout="split", seed=4),
    Shape(heads=3, head_dim=64, H=3, L=1, intermediate=160, dtype=torch.bfloat16, seed=5),
]
PROMPT, LENGTH = 30, 50


def write(checkpoint: Path, type_name: str, causal: bool = False) -> Path:
    """The GGUF file of `checkpoint`, in a new directory beside it."""
    out = checkpoint.parent / f"{type_name}{len(list(checkpoint.parent.iterdir()))}"
    out.mkdir()
    target = GGUFTarget(type_name, causal=causal)
    write_gguf(make_plan(Checkpoint.open(checkpoint), target), out, 256)
    return out / "model.gguf"


def ids_and_reference(checkpoint: Path, prefix: int) -> tuple[list[int], np.ndarray]:
    """Random ids, and transformers' logits [LENGTH, V] with the first `prefix` ids unmasked."""
    model = HrmTextForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = np.random.default_rng(1).integers(14, VOCAB, LENGTH).tolist()
    kinds = torch.tensor([[1] * prefix + [0] * (LENGTH - prefix)]) if prefix else None
    with torch.no_grad():
        logits = model(torch.tensor([ids]), token_type_ids=kinds, use_cache=False).logits
    return ids, logits[0].numpy()


def assert_same(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    """Within `tolerance` of the largest logit, and the same argmax at 99.5 % of positions."""
    assert np.abs(ours - reference).max() <= tolerance * np.abs(reference).max()
    assert (ours.argmax(-1) == reference.argmax(-1)).mean() >= 0.995


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 1e-2)])
def test_causal_logits_match_transformers(
    tmp_path: Path, shape: Shape, kind: str, tolerance: float
) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", shape)
    ids, reference = ids_and_reference(checkpoint, prefix=0)
    with Llama(write(checkpoint, kind, causal=True), 64, 1, kv="f32", flash="off") as llama:
        assert_same(llama.decode(ids), reference, tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_unmasked_prompt_in_one_batch_is_a_prefix(tmp_path: Path, shape: Shape) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", shape)
    ids, reference = ids_and_reference(checkpoint, prefix=PROMPT)
    with Llama(write(checkpoint, "f32", causal=True), 64, 1, kv="f32", flash="off") as llama:
        first = llama.prefill(ids[:PROMPT], causal=False)
        switched = np.concatenate([first[None], llama.decode(ids[PROMPT:])])
        causal = llama.prefill(ids[:PROMPT])
    assert_same(switched, reference[PROMPT - 1 :], 1e-5)
    assert np.abs(causal - first).max() > 0.01 * np.abs(first).max()  # the prefix matters


def test_the_file_itself_asks_for_the_prefix(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", SHAPES[0])
    ids, reference = ids_and_reference(checkpoint, prefix=PROMPT)
    with Llama(write(checkpoint, "f32"), 64, 1, kv="f32", flash="off") as llama:
        rows = [llama.prefill(ids[:PROMPT]), *(llama.decode([i])[0] for i in ids[PROMPT:])]
    assert_same(np.stack(rows), reference[PROMPT - 1 :], 1e-5)


def test_finer_types_come_closer(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", Shape(layers=2))
    ids, reference = ids_and_reference(checkpoint, prefix=0)
    errors = []
    for kind in ("f16", "q8_0", "q5_0", "q4_0"):
        with Llama(write(checkpoint, kind, causal=True), 64, 1) as llama:
            errors.append(float(np.square(llama.decode(ids) - reference).mean()))
    assert errors == sorted(errors) and errors[1] < 1e-3 * np.square(reference).mean()


def test_rows_that_do_not_divide_into_blocks_stay_float16(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", Shape(intermediate=80))
    ids, reference = ids_and_reference(checkpoint, prefix=0)
    with Llama(write(checkpoint, "q8_0", causal=True), 64, 1) as llama:
        assert np.abs(llama.decode(ids) - reference).max() <= 0.05 * np.abs(reference).max()


FORMS = {
    Q.Q4_0: Format(4, 32),
    Q.Q5_0: Format(5, 32, ggml=True),
    Q.Q8_0: Format(8, 32, ggml=True),
    Q.F16: Format(16, dtype="float16"),
    Q.BF16: Format(16, dtype="bfloat16"),
}


@pytest.mark.parametrize("qtype", FORMS)
def test_llamacpp_reads_the_values_we_mean(qtype: Q) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 96), np.float32)
    form = FORMS[qtype]
    tensor = round_weight(weight, form, RTN()) if form.quantized else weight
    packed = np.ascontiguousarray(lay_out(tensor, form))
    read = llamacpp_values(packed, qtype, weight.size).reshape(weight.shape)
    error = {Q.Q4_0: 0.1, Q.Q5_0: 0.06, Q.Q8_0: 0.006, Q.F16: 3e-4, Q.BF16: 3e-3}[qtype]
    assert np.sqrt(np.square(read - weight).mean()) < error
    if qtype is Q.Q4_0:
        ours = quantize(weight, 4, GGML_BLOCK)
        rounded = type(ours)(ours.codes, ours.scales.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(read, dequantize(rounded, 4, 96))
        np.testing.assert_array_equal(read, dequantize(q4_0_codes(q4_0_blocks(ours)), 4, 96))
    if qtype is Q.Q8_0:
        np.testing.assert_array_equal(read, dequantize(q8_0_codes(packed), 8, 96))


@pytest.mark.parametrize("name", [*known_names(), "without merges"])
def test_token_ids_are_ours(tmp_path: Path, name: str) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", Shape())
    if name in known_names():
        train_tokenizer(name).save(str(checkpoint / "tokenizer.json"))
    with Llama(write(checkpoint, "f16"), 64, 1) as llama:
        ours = OurTokenizer(checkpoint).encode(TEXT)
        assert llama.tokenize(TEXT) == ours
        assert llama.eos == SPECIAL_TOKENS["<|box_end|>"]
    assert SPECIAL_TOKENS["<|object_ref_start|>"] in ours


def altered(checkpoint: Path, **changes: object) -> None:
    """Change top-level keys of the checkpoint's tokenizer.json, or of its model."""
    path = checkpoint / "tokenizer.json"
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        (raw["model"] if key in raw["model"] else raw)[key] = value
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not byte-level"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            "not byte-level",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "'Lowercase'"),
        ({"byte_fallback": True}, "byte_fallback"),
        ({"type": "Unigram"}, "'Unigram'"),
        ({"ignore_merges": True}, "pre_tokenizer splits by"),
    ],
)
def test_refuses_a_tokenizer_that_llamacpp_would_not_reproduce(
    checkpoint: Path, changes: dict[str, object], named: str
) -> None:
    altered(checkpoint, **changes)
    with pytest.raises(HRMEdgeError, match=named) as caught:
        write(checkpoint, "f16")
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_refuses_an_unknown_type_and_a_missing_tokenizer(checkpoint: Path) -> None:
    with pytest.raises(HRMEdgeError, match="'q4_k_m', expected one of f32, f16"):
        write(checkpoint, "q4_k_m")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(HRMEdgeError, match="carries its tokenizer inside"):
        write(checkpoint, "f16")


def test_chat_template_is_the_checkpoints_own_or_the_prompt_format(checkpoint: Path) -> None:
    from gguf import GGUFReader

    def template() -> str:
        return GGUFReader(write(checkpoint, "f16")).fields["tokenizer.chat_template"].contents()

    write_tokenizer(checkpoint)
    assert "<|im_start|><|object_ref_start|>" in template()
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert template() == "{{ messages }}"


def test_neither_writing_nor_reading_imports_torch() -> None:
    code = (
        "import sys, hrm_edge.export.to_gguf.write, hrm_edge.export.to_gguf.read;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
