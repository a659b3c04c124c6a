"""The ExecuTorch target: model.pte for XNNPACK, ready for ExecuTorch's own LLM runner.

Works from the checkpoint's mapped files, tensor by tensor; nothing is traced.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hrm_edge.bundle import Decoding, KVCache, Manifest, Quantization, describe_files
from hrm_edge.checkpoint import copy_tokenizer
from hrm_edge.config import HRMTextConfig
from hrm_edge.names import EMBEDDING, PTE_DATA, STACKS, Z_L_INIT, program
from hrm_edge.numerics import rotary
from hrm_edge.progress import status

from ..quantize.ggml import Blocks
from ..quantize.plan import Plan
from ..targets import ExecutorchTarget
from .forward import Parts, forward
from .program import Constants, NamedDataStore, write, write_data
from .stack import Builder
from .weights import table


def write_executorch(plan: Plan, out: Path, max_seq_len: int) -> None:
    """Write the bundle of `plan` into the empty directory `out`.

    If the target has `contexts`, each gets a program of its own; the weights, which all programs
    share, then lie apart. Raises HRMEdgeError for sizes that ExecuTorch has no kernels for.
    """
    target = plan.target
    assert isinstance(target, ExecutorchTarget), target
    checkpoint, contexts = plan.checkpoint, target.contexts
    store = NamedDataStore()
    parts = _parts(plan, store, max_seq_len, target.norm_op)
    manifest = _manifest(plan, max_seq_len, target)
    constants = Constants(store if contexts else None)
    inside = NamedDataStore() if contexts else store
    with status("write"):
        for length in (*contexts, max_seq_len):
            methods = [forward(parts, constants, "forward", length)]
            metadata = runner_metadata(checkpoint.config, checkpoint.eos_token_ids(), length)
            write(out / program(length, max_seq_len), methods, constants, inside, metadata)
        if contexts:
            write_data(out / PTE_DATA, store)
    copy_tokenizer(checkpoint.path, out)
    replace(manifest, files=describe_files(out)).write(out)


def _parts(plan: Plan, store: NamedDataStore, max_seq_len: int, norm_op: bool) -> Parts:
    config = plan.checkpoint.config
    builder = Builder(plan, store, max_seq_len)
    stack = builder.layers if norm_op else builder.stack
    stacks = {name: stack(name) for name in STACKS}
    with status("quantize embedding and head"):
        tensor = plan.tensor(EMBEDDING)
        assert not isinstance(tensor, Blocks), tensor
        embedding = table(tensor, plan.format(EMBEDDING), config.embedding_scale)
        head = builder.head()
    angles = tuple(x[None, :, None] for x in rotary(config, max_seq_len))  # [1, S, 1, d / 2]
    z_l_init = plan.checkpoint.float32(Z_L_INIT)
    target = plan.target
    assert isinstance(target, ExecutorchTarget), target
    kept = config.shared_slots(target.kv_share)
    decoding = config.plan(target.l_cycles)
    return Parts(config, stacks, head, embedding, z_l_init, angles, kept, decoding)


def _manifest(plan: Plan, max_seq_len: int, target: ExecutorchTarget) -> Manifest:
    config, r = plan.checkpoint.config, plan.recipe
    return Manifest(
        target="executorch",
        model=config,
        quantization=Quantization(
            r.bits,
            r.group_size,
            r.head_bits,
            plan.format(EMBEDDING).bits,
            method=r.method_name,
            rotated=r.rotate,
            mean_bits=plan.mean_bits(),
        ),
        kv_cache=KVCache.of(config, 32, kv_share=target.kv_share),
        max_seq_len=max_seq_len,
        eos_token_ids=plan.checkpoint.eos_token_ids(),
        files={},
        made_by={name: version(name) for name in ("hrm-edge", "executorch")},
        contexts=target.contexts,
        decoding=Decoding(target.l_cycles, target.kv_share),
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
