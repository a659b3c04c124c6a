"""GGUF blocks as llama.cpp reads them, and tokenizers that split as it does."""

import ctypes

import numpy as np
from gguf import GGMLQuantizationType as Q
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.llamacpp import library_folder
from hrm_edge.export.to_gguf.tokenizer import GPT2, PRE_TOKENIZERS
from hrm_edge.prompt import SPECIAL_TOKENS
from tiny_models import VOCAB

# ruff: noqa: RUF001 (the text is meant to hold what looks alike)
TEXT = """Hello, world!! It's 12,345.67 o'clock: they'LL say "naïve café" (2nd time).
\tdef f(x):  return x**2   # spaces   inside\r\n\r\n
Страна больших возможностей; Ελληνικά και αγγλικά, 東京は日本の首都です。 你好，世界！ 한국어 문장도
있습니다. العربية من اليمين إلى اليسار ١٢٣. हिन्दी में नमस्ते। ภาษาไทย 🙂👩‍👩‍👧 ½ Ⅻ x²
<|im_start|><|object_ref_start|>What is 1+1?<|im_end|> <|box_end|>  """


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
