"""The ONNX target: model.onnx with external data, ready for onnxruntime and onnxruntime-genai.

Works from the checkpoint's mapped files, tensor by tensor; torch is not involved.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hrm_edge.bundle import KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import Checkpoint, copy_tokenizer
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import track

from .kv_scales import CacheScales, kv_scales
from .onnx_graph import build_model
from .onnx_weights import Weight, WeightFile, Weights
from .plan import Plan
from .quantize import Quantized
from .recipe import Recipe

MODEL, DATA = "model.onnx", "model.onnx.data"
EMBEDDING, HEAD, Z_L_INIT = "model.embed_tokens.weight", "lm_head.weight", "model.z_L_init"


def write_onnx(checkpoint: Checkpoint, out: Path, *, plan: Plan, max_seq_len: int) -> None:
    """Write the bundle of `checkpoint` into the empty directory `out`."""
    recipe = plan.recipe
    config = checkpoint.config
    if config.head_dim % 8:
        raise HRMEdgeError(f"head_dim is {config.head_dim}; the ONNX target needs a multiple of 8")
    with WeightFile(out / DATA, recipe.numpy_dtype) as file:
        weights = _store(checkpoint, file, plan, max_seq_len)
    kv_bits = config.slot_bits(recipe.kv_bits, recipe.kv_h_bits)
    ir.save(build_model(config, weights, kv_bits), out / MODEL)
    copy_tokenizer(checkpoint.path, out)
    genai = json.dumps(genai_config(config, checkpoint.eos_token_ids(), max_seq_len), indent=2)
    (out / "genai_config.json").write_text(genai + "\n")
    table = weights.linears[EMBEDDING]
    Manifest(
        target="onnx",
        model=config,
        quantization=Quantization(
            recipe.bits,
            recipe.group_size,
            recipe.head_bits,
            table.bits,
            recipe.numpy_dtype,
            method=recipe.method_name,
            rotated=recipe.rotate,
            mean_bits=plan.mean_bits(config),
        ),
        kv_cache=KVCache.of(config, recipe.kv_bits, recipe.kv_h_bits),
        max_seq_len=max_seq_len,
        eos_token_ids=checkpoint.eos_token_ids(),
        files=describe_files(out),
        made_by={name: version(name) for name in ("hrm-edge", "onnx-ir")},
    ).write(out)


def _store(checkpoint: Checkpoint, file: WeightFile, plan: Plan, max_seq_len: int) -> Weights:
    config, recipe = checkpoint.config, plan.recipe
    weights = Weights({}, _constants(config, file, max_seq_len))
    for name in track(checkpoint.names(), "quantize"):
        tensor = checkpoint.float32(name)
        if name == Z_L_INIT:
            weights.arrays[name] = file.array(name, tensor)
        elif name == EMBEDDING:
            weights.linears |= _tables(config, file, recipe, tensor)
        else:
            bits = recipe.head_bits if name == HEAD else plan.bits_of(name)
            kept = checkpoint.codes(name, bits, recipe.group_size)
            codes = Quantized(*kept) if kept else None
            if codes is None and name != HEAD and bits < 16:
                codes = plan.quantized(name, tensor)
            weights.linears[name] = file.weight(name, tensor, bits, recipe.group_size, codes)
            if "gqkv" in name and recipe.kv_bits < 16:
                weights.caches |= _cache_scales(config, file, plan, name, tensor)
    return weights


def _cache_scales(
    config: HRMTextConfig, file: WeightFile, plan: Plan, name: str, gqkv: np.ndarray
) -> dict[int, tuple[ir.Value, ir.Value]]:
    """K and V scales of every slot that the projection `name` fills: fitted, or shared by all."""
    module, layer = name.split(".")[1], int(name.split(".")[3])
    slots = [
        turn * config.layers_per_stack + layer
        for turn, stack in enumerate(config.passes)
        if module == f"{stack}_module"
    ]
    if plan.caches:
        return {slot: _pair(file, str(slot), plan.caches[slot]) for slot in slots}
    bits = config.slot_bits(plan.recipe.kv_bits, plan.recipe.kv_h_bits)[slots[0]]
    shared = CacheScales(*kv_scales(config, gqkv, bits))
    return dict.fromkeys(slots, _pair(file, name, shared))


def _pair(file: WeightFile, name: str, scales: CacheScales) -> tuple[ir.Value, ir.Value]:
    """K and V scales; the kernel takes them as float32 only."""
    k = file.array(f"{name}.k_scale", scales.k, exact=True)
    return k, file.array(f"{name}.v_scale", scales.v, exact=True)


def _constants(config: HRMTextConfig, file: WeightFile, length: int) -> dict[str, ir.Value]:
    """The unit weight of MagicNorm, and RoPE's cos and sin [length, head_dim / 2]."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    inverse = (1.0 / config.rope_theta**pairs).astype(np.float32)
    angles = np.outer(np.arange(length, dtype=np.float32), inverse)
    arrays = {
        "ones": np.ones(config.hidden_size, np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    return {name: file.array(name, array) for name, array in arrays.items()}


def _tables(
    config: HRMTextConfig, file: WeightFile, recipe: Recipe, tensor: np.ndarray
) -> dict[str, Weight]:
    """The embedding, and the head too where both are one table: its codes are stored once."""
    bits, group, scale = recipe.embedding_bits, recipe.group_size, config.embedding_scale
    if not config.tie_word_embeddings:
        return {EMBEDDING: file.table(EMBEDDING, tensor, scale, bits, group)}
    if recipe.head_bits < 16:
        group = _dividing(group, config.hidden_size)
    head, table = file.tied(EMBEDDING, tensor, scale, recipe.head_bits, group)
    return {HEAD: head, EMBEDDING: table}


def _dividing(group_size: int, columns: int) -> int:
    """The largest group size up to `group_size` that pads no row: a table's rows are not padded."""
    while columns % group_size:
        group_size //= 2
    if group_size < 16:
        raise HRMEdgeError(
            f"hidden_size is {columns}; a tied embedding needs a multiple of 16 "
            "to be quantized (--head-bits 32 leaves it as it is)"
        )
    return group_size


def genai_config(
    config: HRMTextConfig, eos_token_ids: tuple[int, ...], max_seq_len: int
) -> dict[str, Any]:
    """What stock onnxruntime-genai needs: a decoder that has one layer for each cache slot."""
    names = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": max_seq_len,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(eos_token_ids),
            "pad_token_id": config.pad_token_id,
            "decoder": {
                "session_options": {"log_id": "hrm-edge", "provider_options": []},
                "filename": MODEL,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.cache_slots,
                "num_key_value_heads": config.num_attention_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": names["key"],
                    "past_value_names": names["value"],
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": max_seq_len,
            "past_present_share_buffer": True,
        },
    }
