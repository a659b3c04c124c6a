"""The ExecuTorch target: model.pte for XNNPACK, ready for ExecuTorch's own LLM runner.

Works from the checkpoint's mapped files, tensor by tensor; nothing is traced.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hrm_edge.bundle import KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import Checkpoint, copy_tokenizer
from hrm_edge.config import STACKS, HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import status
from hrm_edge.pte import DATA, program_name

from .executorch_forward import Parts, forward, rotary
from .executorch_program import Constants, NamedDataStore, write, write_data
from .executorch_stack import Builder
from .executorch_weights import table
from .recipe import Recipe

EMBEDDING, HEAD, Z_L_INIT = "model.embed_tokens.weight", "lm_head.weight", "model.z_L_init"


def write_executorch(
    checkpoint: Checkpoint,
    out: Path,
    *,
    recipe: Recipe,
    max_seq_len: int,
    norm_op: bool = False,
    contexts: Sequence[int] = (),
) -> None:
    """Write the bundle of `checkpoint` into the empty directory `out`.

    `contexts` are shorter lengths than `max_seq_len` that get a program of their own; the weights,
    which all programs share, then lie apart. `norm_op`: MagicNorm is called as hrm::magic_norm
    (magic_norm.cpp), not within the delegates. Raises HRMEdgeError for a recipe or sizes that
    ExecuTorch has no kernels for, and for contexts that are not shorter.
    """
    r = recipe
    if r != Recipe(r.bits, r.group_size, r.head_bits, r.embedding_bits, r.kv_bits):
        raise HRMEdgeError(
            "an ExecuTorch bundle is rounded plainly: of the options that say how, only "
            "--bits, --group-size, --head-bits and --embedding-bits apply (others: -t onnx)"
        )
    if recipe.kv_bits != 32:
        raise HRMEdgeError(
            f"kv_bits is {recipe.kv_bits}; in an ExecuTorch bundle the KV cache has 32 bits "
            "(leave out --kv-bits), in an ONNX bundle 8 or 4 are possible"
        )
    contexts = tuple(sorted(set(contexts)))
    if contexts and not 2 <= contexts[0] <= contexts[-1] < max_seq_len:
        raise HRMEdgeError(
            f"contexts are {', '.join(map(str, contexts))}, expected 2 to {max_seq_len - 1} (less "
            "than max_seq_len)"
        )
    store = NamedDataStore()
    parts = _parts(checkpoint, recipe, store, max_seq_len, norm_op)
    manifest = _manifest(checkpoint, recipe, parts, max_seq_len, contexts)
    constants = Constants(store if contexts else None)
    inside = NamedDataStore() if contexts else store
    with status("write"):
        for length in (*contexts, max_seq_len):
            methods = [forward(parts, constants, "forward", length)]
            metadata = runner_metadata(checkpoint.config, checkpoint.eos_token_ids(), length)
            write(out / program_name(manifest, length), methods, constants, inside, metadata)
        if contexts:
            write_data(out / DATA, store)
    copy_tokenizer(checkpoint.path, out)
    replace(manifest, files=describe_files(out)).write(out)


def _parts(
    checkpoint: Checkpoint, recipe: Recipe, store: NamedDataStore, max_seq_len: int, norm_op: bool
) -> Parts:
    config = checkpoint.config
    builder = Builder(config, recipe, checkpoint.float32, store, max_seq_len)
    stack = builder.layers if norm_op else builder.stack
    stacks = {name: stack(name) for name in STACKS}
    with status("quantize embedding and head"):
        embedding = table(
            EMBEDDING,
            checkpoint.float32(EMBEDDING),
            config.embedding_scale,
            recipe.embedding_bits,
            recipe.group_size,
        )
        head = builder.head(EMBEDDING if config.tie_word_embeddings else HEAD)
    z_l_init, angles = checkpoint.float32(Z_L_INIT), rotary(config, max_seq_len)
    return Parts(config, stacks, head, embedding, z_l_init, angles)


def _manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    parts: Parts,
    max_seq_len: int,
    contexts: tuple[int, ...],
) -> Manifest:
    config, r = checkpoint.config, recipe
    return Manifest(
        target="executorch",
        model=config,
        quantization=Quantization(r.bits, r.group_size, r.head_bits, parts.embedding.bits),
        kv_cache=KVCache.of(config, 32),
        max_seq_len=max_seq_len,
        eos_token_ids=checkpoint.eos_token_ids(),
        files={},
        made_by={name: version(name) for name in ("hrm-edge", "executorch")},
        contexts=contexts,
    )


def runner_metadata(
    config: HRMTextConfig, eos_token_ids: tuple[int, ...], max_seq_len: int
) -> dict[str, int | bool | list[int]]:
    """What ExecuTorch's TextLLMRunner and Android's LlmModule ask of a model."""
    return {
        "get_max_seq_len": max_seq_len,
        "get_max_context_len": max_seq_len,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": config.bos_token_id or 0,
        "get_eos_ids": list(eos_token_ids),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
