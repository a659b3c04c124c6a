"""GGUF files in the prebuilt llama.cpp: logits, prefix, token ids, blocks, refusals."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import HrmTextForCausalLM

from benchmarks.llamacpp import Llama, library_folder
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export.gguf_quants import BLOCK, pack, q4_0_blocks, q4_0_codes, q8_0_codes
from hrm_edge.export.gguf_tokenizer import GPT2, PRE_TOKENIZERS, known_names
from hrm_edge.export.quantize import dequantize, quantize
from hrm_edge.export.target_gguf import write_gguf
from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.prompt import Tokenizer as OurTokenizer
from tiny_models import VOCAB, Shape, write_model, write_tokenizer

SHAPES = [
    Shape(),
    Shape(layers=2, H=1, L=3, tied=True, layout="split", seed=4),
    Shape(heads=3, head_dim=64, H=3, L=1, intermediate=160, dtype=torch.bfloat16, seed=5),
]
PROMPT, LENGTH = 30, 50
# ruff: noqa: RUF001 (the text is meant to hold what looks alike)
TEXT = """Hello, world!! It's 12,345.67 o'clock: they'LL say "naïve café" (2nd time).
\tdef f(x):  return x**2   # spaces   inside\r\n\r\n
Страна больших возможностей; Ελληνικά και αγγλικά, 東京は日本の首都です。 你好，世界！ 한국어 문장도
있습니다. العربية من اليمين إلى اليسار ١٢٣. हिन्दी में नमस्ते। ภาษาไทย 🙂👩‍👩‍👧 ½ Ⅻ x²
<|im_start|><|object_ref_start|>What is 1+1?<|im_end|> <|box_end|>  """


def write(checkpoint: Path, type_name: str, **options: bool) -> Path:
    """The GGUF file of `checkpoint`, in a new directory beside it."""
    out = checkpoint.parent / f"{type_name}{len(list(checkpoint.parent.iterdir()))}"
    out.mkdir()
    write_gguf(Checkpoint.open(checkpoint), out, type_name, 256, **options)
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


@pytest.mark.parametrize("qtype", [Q.Q4_0, Q.Q5_0, Q.Q8_0, Q.F16, Q.BF16])
def test_llamacpp_reads_the_values_we_mean(qtype: Q) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 96), np.float32)
    packed = np.ascontiguousarray(pack(weight, qtype))
    read = llamacpp_values(packed, qtype, weight.size).reshape(weight.shape)
    error = {Q.Q4_0: 0.1, Q.Q5_0: 0.06, Q.Q8_0: 0.006, Q.F16: 3e-4, Q.BF16: 3e-3}[qtype]
    assert np.sqrt(np.square(read - weight).mean()) < error
    if qtype is Q.Q4_0:
        ours = quantize(weight, 4, BLOCK)
        rounded = type(ours)(ours.codes, ours.scales.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(read, dequantize(rounded, 4, 96))
        np.testing.assert_array_equal(read, dequantize(q4_0_codes(q4_0_blocks(ours)), 4, 96))
    if qtype is Q.Q8_0:
        np.testing.assert_array_equal(read, dequantize(q8_0_codes(packed), 8, 96))


def llamacpp_values(packed: np.ndarray, qtype: Q, count: int) -> np.ndarray:
    """The float32 values that llama.cpp's own reader finds in `packed`."""

    class Traits(ctypes.Structure):
        _fields_ = [
            ("name", ctypes.c_char_p),
            *((n, ctypes.c_int64) for n in ("block", "interleave", "size")),
            ("quantized", ctypes.c_bool),
            (
                "to_float",
                ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
            ),
        ]

    base = ctypes.CDLL(str(library_folder() / "libggml-base.so"))
    base.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    values = np.empty(count, np.float32)
    traits = base.ggml_get_type_traits(int(qtype)).contents
    traits.to_float(packed.ctypes.data, values.ctypes.data, count)
    return values


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


def train_tokenizer(name: str) -> Tokenizer:
    """A byte-level BPE with some merges that splits as llama.cpp's pre-tokenizer `name`."""
    pre = next(p for p in PRE_TOKENIZERS if p.name == name)
    names = {i: name for name, i in SPECIAL_TOKENS.items()}
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits if s != GPT2]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in pre.splits)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[names.get(i, f"<|special_{i}|>") for i in range(14)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


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
        "import sys, hrm_edge.export.target_gguf, hrm_edge.export.gguf_checkpoint;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
