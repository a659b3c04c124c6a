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

Every RMSNorm of the model follows an addition, so each is one SkipSimplifiedLayerNormalization:
`magic_norm(x, skip) -> (rms_norm(x + skip), x + skip)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike
from onnx_ir.tape import Tape

from hrm_edge import names
from hrm_edge.config import HRMTextConfig

from .weights import Weights

MS = "com.microsoft"
OPSETS = {"": 21, MS: 1}
KV_DTYPES = {
    32: ir.DataType.FLOAT,
    16: ir.DataType.FLOAT16,
    8: ir.DataType.INT8,
    4: ir.DataType.UINT8,
}
MASKED = -3e4  # float16 holds it
ACCURACY_INT8 = 4  # MatMulNBits: activations are quantized to int8, block by block


def build_model(config: HRMTextConfig, weights: Weights, kv_bits: Sequence[int]) -> ir.Model:
    """The complete model; `weights.arrays` holds z_L_init, the norm's ones, cos, sin, KV scales.

    `kv_bits` are those of each cache slot.
    """
    g = _Graph(config, weights, kv_bits)
    ids = g.input(names.INPUT_IDS, ir.DataType.INT64, [1, "sequence"])
    mask = g.input(names.ATTENTION_MASK, ir.DataType.INT64, [1, "total"])
    call = _call(g, ids, mask)
    _logits(g, call, _recurrence(g, call, ids))
    return g.model()


@dataclass(frozen=True)
class _Call:
    """What all attention nodes of a call share."""

    length: ir.Value  # [1] S
    seqlens_k: ir.Value  # int32 [1], past + S - 1
    total: ir.Value  # int32 [], past + S
    first: ir.Value  # bool [], whether this is the prefix
    bias: ir.Value | None  # [1, 1, S, past + S]; None where every call is causal


class _Graph(Tape):
    """A tape with the model's inputs, outputs and weights at hand."""

    def __init__(self, config: HRMTextConfig, weights: Weights, kv_bits: Sequence[int]) -> None:
        super().__init__()
        dtype = weights.arrays["ones"].dtype
        assert dtype is not None
        self.dtype = dtype  # of activations
        self.config, self.weights, self.kv_bits = config, weights, kv_bits
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.past: dict[str, ir.Value] = {}  # "<slot>.key" and "<slot>.value" -> the cache before
        self.present: dict[str, ir.Value] = {}  # and after the call
        self._constants: dict[str, ir.Value] = {}

    def branch(self) -> "_Graph":
        """A tape for one branch of an `If`: what is recorded there may use this graph's values."""
        inner = _Graph(self.config, self.weights, self.kv_bits)
        inner.inputs, inner.past, inner._constants = self.inputs, self.past, self._constants
        inner._initializers = self._initializers
        return inner

    def subgraph(self, outputs: list[ir.Value], name: str) -> ir.Graph:
        """What a branch recorded. Its values' names may not occur in the graph around it."""
        for i, value in enumerate(v for node in self.nodes for v in node.outputs):
            value.name = f"{name}.{i}" if value.name is None else value.name
        return ir.Graph([], outputs, nodes=self.nodes, opset_imports=OPSETS, name=name)

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        self.inputs.append(ir.val(name, dtype=dtype, shape=shape))
        return self.inputs[-1]

    def optional(self, name: str, default: np.ndarray, shape: list[int | str]) -> ir.Value:
        """An input with an initializer, which callers may leave out."""
        value = self.initializer(ir.tensor(default, name=name))
        value.shape = ir.Shape(shape)
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: list) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def constant(self, name: str, array: object, dtype: DTypeLike = np.int64) -> ir.Value:
        if name not in self._constants:
            tensor = ir.tensor(np.array(array, dtype), name=name)
            self._constants[name] = self.initializer(tensor)
        return self._constants[name]

    def std(self, op: str, *inputs: ir.Value) -> ir.Value:
        """A node of the ONNX standard with one output and no attributes."""
        return self.op(op, inputs)

    def ms(self, op: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        """A node of ONNX Runtime's own operators with one output."""
        return self.op(op, inputs, attributes, domain=MS)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", [value], {"to": dtype.value})

    def model(self) -> ir.Model:
        for name, value in self.present.items():
            past = self.past[name]
            value.name, value.type, value.shape = names.PRESENT + name, past.type, past.shape
            self.outputs.append(value)
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=[*self.initializers, *self.weights.initializers()],
            opset_imports=OPSETS,
            name="hrm_text",
        )
        return ir.Model(graph, ir_version=10, producer_name="hrm-edge")


def _call(g: _Graph, ids: ir.Value, mask: ir.Value) -> _Call:
    """Derive past, lengths and the attention bias from the shapes of ids and mask."""
    zero, one = g.constant("zero", 0), g.constant("one", 1)
    length = g.std("Gather", g.std("Shape", ids), one)  # S, scalars as the three below
    total = g.std("Gather", g.std("Shape", mask), one)
    past = g.std("Sub", total, length)
    first = g.std("Equal", past, zero)
    axis0, axis1 = g.constant("axis0", [0]), g.constant("axis1", [1])
    bias = None
    if g.config.prefix_lm:
        # allowed[i, j] = j <= past + i, or everything in the first call: [S, past + S]
        query = g.std("Unsqueeze", g.std("Range", past, total, one), axis1)
        key = g.std("Unsqueeze", g.std("Range", zero, total, one), axis0)
        allowed = g.std("Or", g.std("LessOrEqual", key, query), first)
        floats = g.dtype.numpy()
        shut = g.constant("masked", MASKED, floats)
        # 0 where a key may be seen, else -3e4; [S, total], then [1, 1, S, total] for all heads
        bias = g.std("Where", allowed, g.constant("open", 0, floats), shut)
        bias = g.std("Unsqueeze", bias, g.constant("axes01", [0, 1]))
    int32 = ir.DataType.INT32
    last = g.std("Unsqueeze", g.cast(g.std("Sub", total, one), int32), axis0)
    return _Call(g.std("Unsqueeze", length, axis0), last, g.cast(total, int32), first, bias)


def _embed(g: _Graph, ids: ir.Value) -> ir.Value:
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


def _recurrence(g: _Graph, call: _Call, ids: ir.Value) -> ir.Value:
    """z_H [1, S, D] after all passes that are to run."""
    config = g.config
    states = {"H": _embed(g, ids)}  # [1, S, D] each
    states["L"] = g.std("Expand", g.weights.arrays[names.Z_L_INIT], g.std("Shape", states["H"]))
    passes, count = None, len(config.passes)
    if any(config.skippable):
        passes = g.optional(names.PASSES, np.ones(count, np.bool), [count])
    for turn, stack in enumerate(config.passes):
        if passes is None or not config.skippable[turn]:
            states[stack] = _stack_pass(g, call, turn, states)
        else:
            states[stack] = _optional_pass(g, call, turn, states, passes)
    return states["H"]


def _optional_pass(
    g: _Graph, call: _Call, turn: int, states: dict[str, ir.Value], passes: ir.Value
) -> ir.Value:
    """`_stack_pass` if `passes` say so of this `turn`, else the state and the cache as they are."""
    run, skip = g.branch(), g.branch()
    state = _stack_pass(run, call, turn, states)
    kept = [states[g.config.passes[turn]], *(g.past[name] for name in run.present)]
    branches = {
        "then_branch": run.subgraph([state, *run.present.values()], f"pass_{turn}"),
        "else_branch": skip.subgraph([skip.std("Identity", v) for v in kept], f"no_pass_{turn}"),
    }
    wanted = _wanted(g, call, turn, passes)
    state, *present = g.op_multi_out("If", [wanted], branches, num_outputs=len(kept))
    g.present |= zip(run.present, present, strict=True)
    return state


def _wanted(g: _Graph, call: _Call, turn: int, passes: ir.Value) -> ir.Value:
    """bool []: passes[turn], or for an L pass in the prefix whether its cycle runs at all."""

    def asked(which: int) -> ir.Value:
        return g.std("Gather", passes, g.constant(f"turn_{which}", which))

    if g.config.passes[turn] == "H":
        return asked(turn)
    last = g.config.L_cycles
    h = turn - turn % (last + 1) + last
    needed = g.std("And", call.first, asked(h)) if h != last else call.first
    return g.std("Or", asked(turn), needed)


def _stack_pass(g: _Graph, call: _Call, turn: int, states: dict[str, ir.Value]) -> ir.Value:
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


def _magic_norm(g: _Graph, x: ir.Value, skip: ir.Value) -> tuple[ir.Value, ir.Value]:
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


def _attention(g: _Graph, call: _Call, name: str, slot: int, x: ir.Value) -> ir.Value:
    """o(sigmoid(gate) * attention(q, k, v)) of one block; appends to cache slot `slot`."""
    a = g.config.attention_size  # A = heads * head_dim
    gqkv = _linear(g, x, f"{name}{names.GQKV}.weight")
    gate, qkv = g.op_multi_out(
        "Split", [gqkv, g.constant("gate_qkv", [a, 3 * a])], {"axis": -1}, num_outputs=2
    )
    mixed = _grouped_query_attention(g, call, name, slot, qkv)
    gated = g.std("Mul", g.std("Sigmoid", gate), mixed)  # [1, S, A]
    return _linear(g, gated, f"{name}{names.OUT}.weight")


def _grouped_query_attention(
    g: _Graph, call: _Call, name: str, slot: int, qkv: ir.Value
) -> ir.Value:
    config, arrays, bits = g.config, g.weights.arrays, g.kv_bits[slot]
    width = config.head_dim // 2 if bits == 4 else config.head_dim
    shape = [1, config.num_attention_heads, "max_context", width]
    dtype = KV_DTYPES[bits]
    pair = names.cache_names(slot)
    g.past |= {part: g.input(names.PAST + part, dtype, shape) for part in pair}
    past = [g.past[part] for part in pair]
    scales, attributes = [], {}
    if bits < 16:
        scales = [None, *g.weights.caches[slot]]
        attributes = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        attributes |= {"kv_cache_bit_width": bits}
    lengths = (call.seqlens_k, call.total)
    mixed, key, value = g.op_multi_out(
        "GroupQueryAttention",
        [qkv, None, None, *past, *lengths, arrays["cos"], arrays["sin"], None, call.bias, *scales],
        {
            "num_heads": config.num_attention_heads,
            "kv_num_heads": config.num_attention_heads,
            "do_rotary": 1,
            "causal": int(call.bias is None),
            **attributes,
        },
        num_outputs=3,
        domain=MS,
    )
    g.present |= zip(pair, (key, value), strict=True)
    return mixed


def _mlp(g: _Graph, name: str, x: ir.Value) -> ir.Value:
    """down(silu(gate) * up) of one block."""
    f = g.config.intermediate_size
    both = _linear(g, x, f"{name}{names.GATE_UP}.weight")
    gate, up = g.op_multi_out(
        "Split", [both, g.constant("gate_up", [f, f])], {"axis": -1}, num_outputs=2
    )
    silu = g.std("Mul", gate, g.std("Sigmoid", gate))
    return _linear(g, g.std("Mul", silu, up), f"{name}{names.DOWN}.weight")


def _linear(g: _Graph, x: ir.Value, name: str) -> ir.Value:
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


def _logits(g: _Graph, call: _Call, z_h: ir.Value) -> None:
    zero, last_axis = g.constant("axis0", [0]), g.constant("axis1", [1])
    keep = g.optional(names.LOGITS_TO_KEEP, np.zeros(1, np.int64), [1])
    # of S positions the last `keep`, all of them for 0: [1, kept, D] -> [1, kept, V]
    start = g.std("Where", g.std("Equal", keep, zero), zero, g.std("Sub", call.length, keep))
    kept = g.std("Slice", z_h, start, call.length, last_axis)
    logits = _linear(g, kept, names.HEAD)
    if g.dtype != ir.DataType.FLOAT:
        logits = g.cast(logits, ir.DataType.FLOAT)
    g.output(logits, names.LOGITS, ir.DataType.FLOAT, [1, "kept", g.config.vocab_size])
