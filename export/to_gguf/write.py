"""The GGUF target: model.gguf in the `hrm_text` layout of llama.cpp and of what builds on it.

Written tensor by tensor from the checkpoint's mapped files; torch is not involved. How to run the
file so that the prompt is read as a prefix is in docs/llama-cpp.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType

from hrm_edge.bundle import KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import copy_tokenizer
from hrm_edge.config import HRMTextConfig
from hrm_edge.names import (
    DOWN,
    EMBEDDING,
    GATE_UP,
    GGUF_MODEL,
    GQKV,
    HEAD,
    OUT,
    STACKS,
    Z_L_INIT,
    linear,
)
from hrm_edge.progress import track

from ..quantize.plan import Plan
from ..recipe import Format
from ..targets import FILE_TYPES, GGML_BLOCK, GGUFTarget
from .blocks import lay_out, nbytes, tensor_type
from .tokenizer import GGUFTokenizer

ARCHITECTURE = "hrm_text"
QUANTIZATION_VERSION = 2
PARTS = {  # of a block: hub name -> the tensors that its rows are cut into, in order
    GQKV: ("attn_gate", "attn_q", "attn_k", "attn_v"),
    OUT: ("attn_output",),
    GATE_UP: ("ffn_gate", "ffn_up"),
    DOWN: ("ffn_down",),
}


FILE_NUMBERS = {  # general.file_type
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint, and the tensors of the file that share its rows, in order."""

    source: str
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of each of them
    form: Format


def write_gguf(plan: Plan, out: Path, max_seq_len: int) -> None:
    """Write the bundle of `plan` into the empty directory `out`.

    Raises HRMEdgeError for a tokenizer that llama.cpp would not reproduce, and weights that are not
    finite or do not fit their type.
    """
    target, checkpoint, config = plan.target, plan.checkpoint, plan.checkpoint.config
    assert isinstance(target, GGUFTarget), target
    tokenizer = GGUFTokenizer.of(checkpoint.path, config)
    entries = tuple(_entries(plan))
    writer = GGUFWriter(out / GGUF_MODEL, ARCHITECTURE)
    try:
        _describe(writer, config, checkpoint.path.name, max_seq_len)
        writer.add_file_type(FILE_NUMBERS[target.type])
        writer.add_causal_attention(target.causal or not config.prefix_lm)
        _add_tokenizer(writer, config, tokenizer)
        _write_tensors(writer, plan, entries)
    finally:
        writer.close()
    copy_tokenizer(checkpoint.path, out)
    _manifest(plan, max_seq_len, out).write(out)


def tensor_names(config: HRMTextConfig) -> dict[str, tuple[str, ...]]:
    """Hub name -> the GGUF tensors that hold its rows, in order. L's blocks come before H's."""
    names: dict[str, tuple[str, ...]] = {
        EMBEDDING: ("token_embd.weight",),
        Z_L_INIT: ("hrm.z_l_init",),
    }
    if not config.tie_word_embeddings:
        names[HEAD] = ("output.weight",)
    for s, stack in enumerate(STACKS):
        for layer in range(config.layers_per_stack):
            block = s * config.layers_per_stack + layer
            for hub, parts in PARTS.items():
                key = linear(stack, layer, hub)
                names[key] = tuple(f"blk.{block}.{part}.weight" for part in parts)
    return names


def _entries(plan: Plan) -> Iterator[Entry]:
    shapes = plan.checkpoint.config.tensor_shapes()
    for source, names in tensor_names(plan.checkpoint.config).items():
        rows, *columns = shapes[source]
        yield Entry(source, names, (rows // len(names), *columns), plan.format(source))


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


def _write_tensors(writer: GGUFWriter, plan: Plan, entries: tuple[Entry, ...]) -> None:
    for entry in entries:
        qtype = tensor_type(entry.form)
        for name in entry.names:
            # The dtype only tells the writer that `shape` counts weights, not bytes.
            kind, size = np.dtype(np.float32), nbytes(qtype, entry.shape)
            writer.add_tensor_info(name, entry.shape, kind, size, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in track(entries, "quantize"):
        whole = lay_out(plan.tensor(entry.source), entry.form)
        for part in np.split(whole, len(entry.names)):
            writer.write_tensor_data(part)


def _manifest(plan: Plan, max_seq_len: int, out: Path) -> Manifest:
    target, config = plan.target, plan.checkpoint.config
    assert isinstance(target, GGUFTarget), target
    kind, values = FILE_TYPES[target.type], 2 * config.cache_slots * config.attention_size
    return Manifest(
        target="gguf",
        model=config,
        quantization=Quantization(
            bits=kind.linear,
            group_size=GGML_BLOCK,
            head_bits=kind.head,
            embedding_bits=kind.embedding,
            method=plan.recipe.method_name,
            rotated=plan.recipe.rotate,
        ),
        kv_cache=KVCache(
            16, "float16", config.cache_slots, 2 * values, fitted=False
        ),  # llama.cpp's default
        max_seq_len=max_seq_len,
        eos_token_ids=config.eos_token_ids,
        files=describe_files(out),
        made_by={name: version(name) for name in ("hrm-edge", "gguf")},
    )
