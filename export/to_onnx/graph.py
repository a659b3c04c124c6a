"""The unrolled H/L cycles as an ONNX graph over stored weights.

One graph serves prefill, decode and the checking of drafts. Inputs are `input_ids` [1, S],
`attention_mask` [1, past + S] and, for each cache slot N, `past_key_values.N.key` and `.value`
[1, heads, max_context, head_dim] (half as wide where two 4-bit values share an element); outputs
are `logits` and `present.N.key`, `.value`, which may be the same buffers. The call with past = 0 is
the prefix, bidirectional; every later call is causal. Activations are float32 or float16, as the
weights say; logits are float32 [1, S, V], or of the last positions alone if the optional input
`logits_to_keep` says how many (0, its default, keeps all).

The optional input `passes`, bool [passes], says which stack passes to run; the others leave states
and cache as they are. All run by default, and the last L pass and the H pass of the first cycle
always do; the prefix is read by all L passes of each cycle that runs. A pass that can be left out
is an `If` over the same weights, which runtimes pack once. With its passes all run, a call costs
what it would without them.

Weights may be used in the graph itself and in branches of it, not in branches of branches: ONNX
Runtime does not pack them for those, and takes 30 times as long.

Every RMSNorm of the model follows an addition, so each is one SkipSimplifiedLayerNormalization:
`magic_norm(x, skip) -> (rms_norm(x + skip), x + skip)`.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hrm_edge import names
from hrm_edge.config import HRMTextConfig

from .attention import KV_DTYPES, Call, attend
from .tape import MS, Graph
from .weights import Weights

ACCURACY_INT8 = 4  # MatMulNBits: activations are quantized to int8, block by block

States = dict[str, ir.Value]  # z_L and z_H, [1, S, D] each, by the stack that leaves them


def build_model(config: HRMTextConfig, weights: Weights, kv_bits: Sequence[int]) -> ir.Model:
    """The complete model; `weights.arrays` holds z_L_init, the norm's ones, cos, sin, KV scales.

    `kv_bits` are those of each cache slot.
    """
    g = Graph(config, weights, kv_bits)
    ids = g.input(names.INPUT_IDS, ir.DataType.INT64, ["rows", "sequence"])
    mask = g.input(names.ATTENTION_MASK, ir.DataType.INT64, ["rows", "total"])
    for slot, bits in enumerate(kv_bits):
        width = config.head_dim // 2 if bits == 4 else config.head_dim
        shape = ["rows", config.num_attention_heads, "max_context", width]
        for part in names.cache_names(slot):
            g.past[part] = g.input(names.PAST + part, KV_DTYPES[bits], shape)
    passes = None
    if any(config.skippable):
        count = len(config.passes)
        passes = g.optional(names.PASSES, np.ones(count, np.bool), [count])
    call = Call.of(g, ids, mask)
    _logits(g, call, _recurrence(g, call, ids, passes))
    return g.model()


def _embed(g: Graph, ids: ir.Value) -> ir.Value:
    """Token embeddings [1, S, D], scaled; quantized tables hold the scale in their scales."""
    table = g.weights.linears[names.EMBEDDING]
    if table.bits >= 16:
        scale = g.constant("embedding_scale", g.config.embedding_scale, g.dtype.numpy())
        return g.std("Mul", g.std("Gather", table.values, ids), scale)
    return g.ms(
        "GatherBlockQuantized",
        table.values,
        ids,
        table.scales,
        bits=table.bits,
        block_size=table.group_size,
        gather_axis=0,
        quantize_axis=1,
    )


def _recurrence(g: Graph, call: Call, ids: ir.Value, passes: ir.Value | None) -> ir.Value:
    """z_H [1, S, D] after all passes that are to run."""
    states = {"H": _embed(g, ids)}  # [1, S, D] each
    states["L"] = g.std("Expand", g.weights.arrays[names.Z_L_INIT], g.std("Shape", states["H"]))
    for turn, stack in enumerate(g.config.passes):
        if g.config.skippable[turn]:
            assert passes is not None
            states[stack] = _optional_pass(g, call, turn, states, passes)
        else:
            states[stack] = _stack_pass(g, call, turn, states)
    return states["H"]


def _optional_pass(g: Graph, call: Call, turn: int, states: States, passes: ir.Value) -> ir.Value:
    """`_stack_pass` if `passes` say so of this `turn`, else the state and the cache as they are."""
    return g.either(
        _wanted(g, call, turn, passes),
        lambda g: _stack_pass(g, call, turn, states),
        lambda g: states[g.config.passes[turn]],
        (f"pass_{turn}", f"no_pass_{turn}"),
    )


def _wanted(g: Graph, call: Call, turn: int, passes: ir.Value) -> ir.Value:
    """bool []: passes[turn], or for an L pass in the prefix whether its cycle runs at all."""

    def asked(which: int) -> ir.Value:
        return g.std("Gather", passes, g.constant(f"turn_{which}", which))

    if g.config.passes[turn] == "H":
        return asked(turn)
    last = g.config.L_cycles
    h = turn - turn % (last + 1) + last
    needed = g.std("And", call.first, asked(h)) if h != last else call.first
    return g.std("Or", asked(turn), needed)


def _stack_pass(g: Graph, call: Call, turn: int, states: States) -> ir.Value:
    """The state that pass `turn` leaves of its stack, [1, S, D]: S(z_L + z_H)."""
    stack = g.config.passes[turn]
    other = "L" if stack == "H" else "H"
    normed, residual = _magic_norm(g, states[stack], states[other])
    for layer in range(g.config.layers_per_stack):
        name, slot = names.block(stack, layer), turn * g.config.layers_per_stack + layer
        delta = _attention(g, call, name, slot, normed)
        normed, residual = _magic_norm(g, delta, residual)
        delta = _mlp(g, name, normed)
        normed, residual = _magic_norm(g, delta, residual)
    return normed


def _magic_norm(g: Graph, x: ir.Value, skip: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(rms_norm(x + skip), x + skip), fused."""
    outputs = [ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()]
    g.op_multi_out(
        "SkipSimplifiedLayerNormalization",
        [x, skip, g.weights.arrays["ones"]],
        {"epsilon": g.config.rms_norm_eps},
        outputs=outputs,
        domain=MS,
    )
    return outputs[0], outputs[3]


def _attention(g: Graph, call: Call, name: str, slot: int, x: ir.Value) -> ir.Value:
    """o(sigmoid(gate) * attention(q, k, v)) of one block."""
    a = g.config.attention_size  # A = heads * head_dim
    gqkv = _linear(g, x, f"{name}{names.GQKV}.weight")
    gate, qkv = g.op_multi_out(
        "Split", [gqkv, g.constant("gate_qkv", [a, 3 * a])], {"axis": -1}, num_outputs=2
    )
    gated = g.std("Mul", g.std("Sigmoid", gate), attend(g, call, slot, qkv))  # [1, S, A]
    return _linear(g, gated, f"{name}{names.OUT}.weight")


def _mlp(g: Graph, name: str, x: ir.Value) -> ir.Value:
    """down(silu(gate) * up) of one block."""
    f = g.config.intermediate_size
    both = _linear(g, x, f"{name}{names.GATE_UP}.weight")
    gate, up = g.op_multi_out(
        "Split", [both, g.constant("gate_up", [f, f])], {"axis": -1}, num_outputs=2
    )
    silu = g.std("Mul", gate, g.std("Sigmoid", gate))
    return _linear(g, g.std("Mul", silu, up), f"{name}{names.DOWN}.weight")


def _linear(g: Graph, x: ir.Value, name: str) -> ir.Value:
    """x [1, S, K] times the transposed weight [N, K]."""
    weight = g.weights.linears[name]
    if weight.bits >= 16:
        return g.ms(
            "FusedMatMul",
            x,
            weight.values,
            transB=1,
        )
    n, k = weight.shape
    return g.ms(
        "MatMulNBits",
        x,
        weight.values,
        weight.scales,
        *(() if weight.zero_points is None else (weight.zero_points,)),
        N=n,
        K=k,
        bits=weight.bits,
        block_size=weight.group_size,
        accuracy_level=ACCURACY_INT8,
    )


def _logits(g: Graph, call: Call, z_h: ir.Value) -> None:
    zero, last_axis = g.constant("axis0", [0]), g.constant("axis1", [1])
    keep = g.optional(names.LOGITS_TO_KEEP, np.zeros(1, np.int64), [1])
    # of S positions the last `keep`, all of them for 0: [1, kept, D] -> [1, kept, V]
    start = g.std("Where", g.std("Equal", keep, zero), zero, g.std("Sub", call.length, keep))
    kept = g.std("Slice", z_h, start, call.length, last_axis)
    logits = _linear(g, kept, names.HEAD)
    if g.dtype != ir.DataType.FLOAT:
        logits = g.cast(logits, ir.DataType.FLOAT)
    g.output(logits, names.LOGITS, ir.DataType.FLOAT, ["rows", "kept", g.config.vocab_size])
