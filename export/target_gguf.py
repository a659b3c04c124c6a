"""The GGUF target: model.gguf in the `hrm_text` layout of llama.cpp and of what builds on it.

Written tensor by tensor from the checkpoint's mapped files; torch is not involved. How to run the
file so that the prompt is read as a prefix is in docs/llama-cpp.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from hrm_edge.bundle import KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import Checkpoint, copy_tokenizer
from hrm_edge.config import STACKS, HRMTextConfig
from hrm_edge.progress import track

from .gguf_quants import BLOCK, FileType, Q, file_type, fitting, nbytes, pack
from .gguf_tokenizer import GGUFTokenizer

MODEL = "model.gguf"
ARCHITECTURE = "hrm_text"
QUANTIZATION_VERSION = 2
PARTS = {  # of a block: hub name -> the tensors that its rows are cut into, in order
    "attn.gqkv_proj": ("attn_gate", "attn_q", "attn_k", "attn_v"),
    "attn.o_proj": ("attn_output",),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: some rows of a tensor of the checkpoint."""

    name: str
    source: str
    rows: slice
    shape: tuple[int, ...]
    qtype: Q


def write_gguf(
    checkpoint: Checkpoint, out: Path, type_name: str, max_seq_len: int, causal: bool = False
) -> None:
    """Write the bundle of `checkpoint` into the empty directory `out`.

    `type_name` is one of FILE_TYPES. Unless `causal` is set, the file of a PrefixLM model tells
    llama.cpp not to mask: a prompt that is one batch is then read as a prefix, and tokens that
    follow one at a time see all before them. Raises HRMEdgeError for an unknown type, a tokenizer
    that llama.cpp would not reproduce, and weights that are not finite or do not fit the type.
    """
    config, kind = checkpoint.config, file_type(type_name)
    tokenizer = GGUFTokenizer.of(checkpoint.path, config)
    entries = tuple(_entries(config, kind))
    writer = GGUFWriter(out / MODEL, ARCHITECTURE)
    try:
        _describe(writer, config, checkpoint.path.name, max_seq_len)
        writer.add_file_type(kind.number)
        writer.add_causal_attention(causal or not config.prefix_lm)
        _add_tokenizer(writer, config, tokenizer)
        _write_tensors(writer, checkpoint, entries)
    finally:
        writer.close()
    copy_tokenizer(checkpoint.path, out)
    _manifest(config, kind, max_seq_len, out).write(out)


def tensor_names(config: HRMTextConfig) -> dict[str, tuple[str, ...]]:
    """Hub name -> the GGUF tensors that hold its rows, in order. L's blocks come before H's."""
    names: dict[str, tuple[str, ...]] = {
        "model.embed_tokens.weight": ("token_embd.weight",),
        "model.z_L_init": ("hrm.z_l_init",),
    }
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = ("output.weight",)
    for s, stack in enumerate(STACKS):
        for layer in range(config.layers_per_stack):
            block = s * config.layers_per_stack + layer
            for hub, parts in PARTS.items():
                key = f"model.{stack}_module.layers.{layer}.{hub}.weight"
                names[key] = tuple(f"blk.{block}.{part}.weight" for part in parts)
    return names


def _entries(config: HRMTextConfig, kind: FileType) -> Iterator[Entry]:
    shapes = config.tensor_shapes()
    for source, parts in tensor_names(config).items():
        shape = shapes[source]
        rows = shape[0] // len(parts)
        for i, name in enumerate(parts):
            cut = slice(i * rows, (i + 1) * rows)
            yield Entry(name, source, cut, (rows, *shape[1:]), _type(config, kind, name, shape))


def _type(config: HRMTextConfig, kind: FileType, name: str, shape: tuple[int, ...]) -> Q:
    if len(shape) == 1:
        return Q.F32
    if name == "token_embd.weight":  # tied, it is the head as well
        return fitting(kind.head if config.tie_word_embeddings else kind.embedding, shape[1])
    return fitting(kind.head if name == "output.weight" else kind.linear, shape[1])


def _describe(writer: GGUFWriter, config: HRMTextConfig, name: str, max_seq_len: int) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(max_seq_len)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.cache_slots)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_embedding_scale(config.embedding_scale)
    writer.add_uint32(f"{ARCHITECTURE}.hrm.layers_per_stack", config.layers_per_stack)
    writer.add_uint32(f"{ARCHITECTURE}.hrm.h_cycles", config.H_cycles)
    writer.add_uint32(f"{ARCHITECTURE}.hrm.l_cycles", config.L_cycles)
    writer.add_bool(f"{ARCHITECTURE}.hrm.prefix_lm", config.prefix_lm)


def _add_tokenizer(writer: GGUFWriter, config: HRMTextConfig, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges or ("! !",))  # llama.cpp demands one; no such token
    writer.add_add_bos_token(False)  # the prompt spells its special tokens
    writer.add_add_eos_token(False)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    if config.eos_token_ids:
        writer.add_eos_token_id(config.eos_token_ids[0])
    if len(config.eos_token_ids) > 1:  # GGUF has one id of each kind; any of them ends an answer
        writer.add_eot_token_id(config.eos_token_ids[1])
    writer.add_chat_template(tokenizer.chat_template)


def _write_tensors(writer: GGUFWriter, checkpoint: Checkpoint, entries: tuple[Entry, ...]) -> None:
    for entry in entries:
        size = nbytes(entry.qtype, entry.shape)
        # The dtype only tells the writer that `shape` counts weights, not bytes.
        kind = np.dtype(np.float32)
        writer.add_tensor_info(entry.name, entry.shape, kind, size, raw_dtype=entry.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in track(entries, "quantize"):
        weight = checkpoint.float32(entry.source, entry.rows)
        writer.write_tensor_data(pack(weight, entry.qtype))


def _manifest(config: HRMTextConfig, kind: FileType, max_seq_len: int, out: Path) -> Manifest:
    bits = {q: b for q, b in ((Q.F32, 32), (Q.F16, 16), (Q.BF16, 16), (Q.Q8_0, 8))}
    values = 2 * config.cache_slots * config.attention_size
    return Manifest(
        target="gguf",
        model=config,
        quantization=Quantization(
            bits=kind.bits,
            group_size=BLOCK,
            head_bits=bits[kind.head],
            embedding_bits=bits.get(kind.embedding, kind.bits),
        ),
        kv_cache=KVCache(16, "float16", config.cache_slots, 2 * values),  # llama.cpp's default
        max_seq_len=max_seq_len,
        eos_token_ids=config.eos_token_ids,
        files=describe_files(out),
        made_by={name: version(name) for name in ("hrm-edge", "gguf")},
    )
