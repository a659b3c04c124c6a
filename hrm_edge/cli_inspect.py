"""`hrm-edge inspect`: what a checkpoint or bundle holds and what it costs to run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hrm_edge import shipped
from hrm_edge.bundle import EXACT, Bundle, Decoding, KVCache, Manifest, Quantization
from hrm_edge.config import KV_SHARES, HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.fit import need
from hrm_edge.names import MANIFEST


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Hash the files of a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: Path, verify: bool, as_json: bool) -> None:
    """Show architecture, sizes and costs of the checkpoint or bundle at PATH."""
    path = shipped.inside(path) or path
    is_bundle = (path / MANIFEST).exists()
    if verify and not is_bundle:
        raise HRMEdgeError(f"{path}: a checkpoint, which has no hashes to --verify")
    facts = _bundle(path, verify) if is_bundle else _checkpoint(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        click.echo(f"{key.replace('_', ' '):22} {_shown(value)}")


def _bundle(path: Path, verify: bool) -> dict[str, Any]:
    manifest = Bundle.open(path, verify).manifest
    facts = {"kind": f"bundle ({manifest.target})"} | _architecture(manifest.model)
    return facts | {
        "quantization": _quantization(manifest.quantization),
        "max_seq_len": manifest.max_seq_len,
        "weight_bytes_per_token": weight_bytes_per_token(manifest.model, manifest.quantization),
        "kv_cache": _kv_cache(manifest.kv_cache),
        "kv_bytes_per_token": manifest.kv_cache.bytes_per_token,
        **_shared(manifest.model, manifest.kv_cache),
        **_decoding(manifest),
        **_memory(manifest),
        "files": {name: file.size for name, file in manifest.files.items()},
        **({"hashes": "all equal the manifest's"} if verify else {}),
        "made_by": dict(manifest.made_by),
    }


def _quantization(quantization: Quantization) -> dict[str, Any]:
    """What there is to say of it."""
    unsaid = {"rotated": False, "mean_bits": None}
    facts = asdict(quantization)
    return {name: value for name, value in facts.items() if value != unsaid.get(name, ...)}


def _memory(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Anonymous bytes that the Python runtime takes at three lengths, by the fit check's rule."""
    longest = manifest.max_seq_len
    lengths = sorted({min(longest, n) for n in (512, 2048, longest)})
    return {"memory": {f"{n} tokens": need(manifest, n).total for n in lengths}}


def _kv_cache(cache: KVCache) -> dict[str, int]:
    h_bits = {} if cache.h_bits is None else {"h_bits": cache.h_bits}
    return {"bits": cache.bits} | h_bits | {"slots": cache.slots}


def _shared(config: HRMTextConfig, cache: KVCache) -> dict[str, dict[str, int]]:
    """Bytes a token with slots shared (--kv-share), where that is possible."""
    if cache.fitted is not False or cache.bits == 16:
        return {}
    of = {s: KVCache.of(config, cache.bits, cache.h_bits, kv_share=s) for s in KV_SHARES[1:]}
    return {"kv_bytes_if_shared": {share: found.bytes_per_token for share, found in of.items()}}


def _decoding(manifest: Manifest) -> dict[str, dict[str, str]]:
    """What a program is made for, or what --fast takes, where that is not the exact plan."""
    chosen = {"answers_read_by": manifest.decoding}
    if "fast" in manifest.quality:
        chosen["fast"] = Decoding.of(manifest.quality["fast"]["recommended"])
    return {
        name: {"l_cycles": ",".join(map(str, d.l_cycles or ("all",))), "kv_share": d.kv_share}
        for name, d in chosen.items()
        if d != EXACT
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from hrm_edge.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    facts = {"kind": "checkpoint"} | _architecture(config)
    files = sorted(set(checkpoint.files.values()))
    return facts | {
        "max_seq_len": config.max_position_embeddings,
        "kv_bytes_per_token": {
            f"{bits} bits": KVCache.of(config, bits).bytes_per_token for bits in (32, 8, 4)
        },
        "files": {file.name: file.stat().st_size for file in files},
    }


def _architecture(config: HRMTextConfig) -> dict[str, Any]:
    return {
        "model": f"2 stacks of {config.layers_per_stack} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim}, vocabulary {config.vocab_size}",
        "parameters": config.parameters | {"total": sum(config.parameters.values())},
        "passes": " ".join(config.passes),
        "layer_passes_per_token": config.cache_slots,
        "weights_per_token": config.weights_per_token,
        "prefix": "bidirectional" if config.prefix_lm else "causal",
    }


def weight_bytes_per_token(config: HRMTextConfig, quantization: Quantization) -> int:
    """Bytes of weights that decoding one token reads: each stack once a pass, and the head."""
    per_stack = _stored(config.parameters["L"], quantization.bits, quantization)
    head = _stored(config.vocab_size * config.hidden_size, quantization.head_bits, quantization)
    return len(config.passes) * per_stack + head


def _stored(weights: int, bits: int, quantization: Quantization) -> int:
    each = 2 if quantization.dtype == "float16" else 4
    scales = 0 if bits >= 16 else each * weights // quantization.group_size
    return weights * bits // 8 + scales


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
