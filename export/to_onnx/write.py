"""The ONNX target: model.onnx with external data, ready for onnxruntime and onnxruntime-genai.

Works from the checkpoint's mapped files, tensor by tensor; torch is not involved.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hrm_edge import names
from hrm_edge.bundle import KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import copy_tokenizer
from hrm_edge.config import HRMTextConfig
from hrm_edge.names import EMBEDDING, HEAD, Z_L_INIT
from hrm_edge.numerics import rotary
from hrm_edge.progress import track

from ..quantize.ggml import Blocks
from ..quantize.kv_scales import CacheScales
from ..quantize.plan import Plan
from .graph import build_model
from .weights import WeightFile, Weights


def write_onnx(plan: Plan, out: Path, max_seq_len: int) -> None:
    """Write the bundle of `plan` into the empty directory `out`."""
    checkpoint, recipe = plan.checkpoint, plan.recipe
    config = checkpoint.config
    with WeightFile(out / names.ONNX_DATA, recipe.numpy_dtype) as file:
        weights = _store(plan, file, max_seq_len)
    kv_bits = config.slot_bits(recipe.kv_bits, recipe.kv_h_bits)
    ir.save(build_model(config, weights, kv_bits), out / names.ONNX_MODEL)
    copy_tokenizer(checkpoint.path, out)
    genai = json.dumps(genai_config(config, checkpoint.eos_token_ids(), max_seq_len), indent=2)
    (out / names.GENAI_CONFIG).write_text(genai + "\n")
    Manifest(
        target="onnx",
        model=config,
        quantization=Quantization(
            recipe.bits,
            recipe.group_size,
            recipe.head_bits,
            plan.format(EMBEDDING).bits,
            recipe.numpy_dtype,
            method=recipe.method_name,
            rotated=recipe.rotate,
            mean_bits=plan.mean_bits(),
        ),
        kv_cache=KVCache.of(config, recipe.kv_bits, recipe.kv_h_bits, bool(plan.caches)),
        max_seq_len=max_seq_len,
        eos_token_ids=checkpoint.eos_token_ids(),
        files=describe_files(out),
        made_by={name: version(name) for name in ("hrm-edge", "onnx-ir")},
    ).write(out)


def _store(plan: Plan, file: WeightFile, max_seq_len: int) -> Weights:
    config = plan.checkpoint.config
    weights = Weights({}, _constants(config, file, max_seq_len))
    for name in track(plan.checkpoint.names(), "quantize"):
        form, tensor = plan.format(name), plan.tensor(name)
        if isinstance(tensor, Blocks):
            raise AssertionError(f"{name}: blocks of llama.cpp in an ONNX plan")
        if name == EMBEDDING:
            tables = (name, tensor, form, config.embedding_scale, config.hidden_size)
            if config.tie_word_embeddings:
                weights.linears[HEAD], weights.linears[name] = file.tied(*tables)
            else:
                weights.linears[name] = file.table(*tables)
        elif name == Z_L_INIT:
            assert isinstance(tensor, np.ndarray)
            weights.arrays[name] = file.array(name, tensor)
        else:
            weights.linears[name] = file.weight(name, tensor, form, config.tensor_shapes()[name])
            if names.GQKV in name:
                weights.caches |= _cache_scales(file, plan, name)
    return weights


def _cache_scales(file: WeightFile, plan: Plan, name: str) -> dict[int, tuple[ir.Value, ir.Value]]:
    """K and V scales of every slot that the projection `name` fills; one that is shared, once."""
    stored: dict[int, tuple[ir.Value, ir.Value]] = {}  # by the identity of the scales
    found = plan.cache_scales(name)
    for slot, scales in found.items():
        if id(scales) not in stored:
            stored[id(scales)] = _pair(file, str(slot) if plan.caches else name, scales)
    return {slot: stored[id(scales)] for slot, scales in found.items()}


def _pair(file: WeightFile, name: str, scales: CacheScales) -> tuple[ir.Value, ir.Value]:
    """K and V scales; the kernel takes them as float32 only."""
    k = file.array(f"{name}.k_scale", scales.k, exact=True)
    return k, file.array(f"{name}.v_scale", scales.v, exact=True)


def _constants(config: HRMTextConfig, file: WeightFile, length: int) -> dict[str, ir.Value]:
    """The unit weight of MagicNorm, and RoPE's cos and sin [length, head_dim / 2]."""
    cos, sin = rotary(config, length)
    arrays = {"ones": np.ones(config.hidden_size, np.float32), "cos": cos, "sin": sin}
    return {name: file.array(name, array) for name, array in arrays.items()}


def genai_config(
    config: HRMTextConfig, eos_token_ids: tuple[int, ...], max_seq_len: int
) -> dict[str, Any]:
    """What stock onnxruntime-genai needs: a decoder that has one layer for each cache slot."""
    past, present = ([f"{p}%d.{part}" for part in names.PARTS] for p in (names.PAST, names.PRESENT))
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
                "filename": names.ONNX_MODEL,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.cache_slots,
                "num_key_value_heads": config.num_attention_heads,
                "inputs": {
                    "input_ids": names.INPUT_IDS,
                    "attention_mask": names.ATTENTION_MASK,
                    "past_key_names": past[0],
                    "past_value_names": past[1],
                },
                "outputs": {
                    "logits": names.LOGITS,
                    "present_key_names": present[0],
                    "present_value_names": present[1],
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": max_seq_len,
            "past_present_share_buffer": True,
        },
    }
