"""Attention of one block, in the two forms that a call can take.

The first call of a sequence has no past, so it attends to keys and values as they are, before the
cache rounds them: plain MultiHeadAttention, which leaves writing the cache to nodes beside it. In a
PrefixLM its tokens see each other in both directions, without a mask; in a causal model the node is
told which they see. (GroupQueryAttention takes three times as long for 1,024 tokens of an int8
cache, and ten times as long again where the system hides the size of the L2 cache, as on aarch64:
microsoft/onnxruntime #29621.) Every later call is causal: one GroupQueryAttention, which reads,
rounds and appends to the cache itself. Which it is, an `If` decides in each block.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from hrm_edge import names

from .tape import MS, Graph

KV_DTYPES = {
    32: ir.DataType.FLOAT,
    16: ir.DataType.FLOAT16,
    8: ir.DataType.INT8,
    4: ir.DataType.UINT8,
}


@dataclass(frozen=True)
class Call:
    """What all blocks of a call share."""

    length: ir.Value  # [1] S
    first: ir.Value  # bool [1], whether this is the first call
    seqlens_k: ir.Value  # int32 [R, 1], past + S - 1 of each row
    total: ir.Value  # int32 [], the largest past + S
    rows: ir.Value  # [1, heads, S, 3], where the first call puts its keys and values

    @classmethod
    def of(cls, g: Graph, ids: ir.Value, mask: ir.Value) -> "Call":
        """From the shapes of ids [R, S] and mask [R, past + S], and the ones in each row's mask."""
        one, int32 = g.constant("axis1", [1]), ir.DataType.INT32
        length, total = (g.std("Gather", g.std("Shape", x), one) for x in (ids, mask))
        first = g.std("Equal", length, total)
        held = g.op("ReduceSum", [mask, one], {"keepdims": 1})
        last = g.cast(g.std("Sub", held, one), int32)
        squeezed = g.cast(g.std("Squeeze", total), int32)
        return cls(length, first, last, squeezed, _rows(g, length))


def attend(g: Graph, call: Call, slot: int, qkv: ir.Value) -> ir.Value:
    """attention(q, k, v) [1, S, A] of qkv [1, S, 3 A]; keys and values go to cache slot `slot`."""
    causal = partial(_causal, call=call, slot=slot, qkv=qkv)
    prefix = partial(_prefix, rows=call.rows, slot=slot, qkv=qkv)
    return g.either(call.first, prefix, causal, (f"prefix_{slot}", f"causal_{slot}"))


def _causal(g: Graph, call: Call, slot: int, qkv: ir.Value) -> ir.Value:
    heads, bits = g.config.num_attention_heads, g.kv_bits[slot]
    pair = names.cache_names(slot)
    scales, attributes = [], {}
    if bits < 16:
        scales = [None, None, None, *g.weights.caches[slot]]
        attributes = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        attributes |= {"kv_cache_bit_width": bits}
    past = [g.past[part] for part in pair]
    rotary = (g.weights.arrays["cos"], g.weights.arrays["sin"])
    mixed, *present = g.op_multi_out(
        "GroupQueryAttention",
        [qkv, None, None, *past, call.seqlens_k, call.total, *rotary, *scales],
        {"num_heads": heads, "kv_num_heads": heads, "do_rotary": 1, **attributes},
        num_outputs=3,
        domain=MS,
    )
    g.present |= zip(pair, present, strict=True)
    return mixed


def _prefix(g: Graph, rows: ir.Value, slot: int, qkv: ir.Value) -> ir.Value:
    a = g.config.attention_size
    parts = g.constant("q_k_v", [a, a, a])
    q, k, v = g.op_multi_out("Split", [qkv, parts], {"axis": -1}, num_outputs=3)
    q, k = (_rotated(g, x) for x in (q, k))
    how = {"num_heads": g.config.num_attention_heads}
    if not g.config.prefix_lm:
        how["unidirectional"] = 1
    mixed = g.ms("MultiHeadAttention", q, k, v, **how)
    for which, (part, x) in enumerate(zip(names.cache_names(slot), (k, v), strict=True)):
        g.present[part] = g.std("ScatterND", g.past[part], rows, _codes(g, slot, which, x))
    return mixed


def _rotated(g: Graph, x: ir.Value) -> ir.Value:
    """RoPE from position 0 on, [1, S, A]."""
    cos, sin = g.weights.arrays["cos"], g.weights.arrays["sin"]
    heads = g.config.num_attention_heads
    return g.ms("RotaryEmbedding", x, g.constant("axis0", [0]), cos, sin, num_heads=heads)


def _codes(g: Graph, slot: int, which: int, x: ir.Value) -> ir.Value:
    """x [1, S, A] as slot `slot` keeps it, [1, heads, S, width].

    Rounded as GroupQueryAttention does it: code = clip(round(x / scale)), half to even.
    """
    config, bits = g.config, g.kv_bits[slot]
    rows = g.constant("rows", [1, -1, config.num_attention_heads, config.head_dim])
    x = g.op("Transpose", [g.std("Reshape", x, rows)], {"perm": [0, 2, 1, 3]})
    if bits >= 16:
        return x
    if g.dtype != ir.DataType.FLOAT:
        x = g.cast(x, ir.DataType.FLOAT)
    x = g.std("Div", x, g.weights.caches[slot][which])
    # QuantizeLinear per channel takes 50 times as long as it does with one scale
    unit = g.constant("unit", 1, np.float32)
    if bits == 8:
        return g.std("QuantizeLinear", x, unit, g.constant("zero_int8", 0, np.int8))
    x = g.std("Clip", x, *(g.constant(f"int4_{i}", i, np.float32) for i in (-8, 7)))
    codes = g.std("QuantizeLinear", x, unit, g.constant("eight", 8, np.uint8))  # 0 to 15
    packed = g.std("MatMulInteger", codes, g.constant("pairs", _pairs(config.head_dim), np.uint8))
    return g.cast(packed, ir.DataType.UINT8)


def _rows(g: Graph, length: ir.Value) -> ir.Value:
    """[0, head, position], where each of `length` rows of a cache lies: [1, heads, S, 3]."""
    heads = g.config.num_attention_heads
    one, axes = g.constant("axis1", [1]), g.constant("axes013", [0, 1, 3])
    rows = g.op("Concat", [one, g.constant("heads", [heads]), length, one], {"axis": 0})
    zero, step = g.constant("zero", 0), g.constant("one", 1)
    end = g.std("Squeeze", length, g.constant("axis0", [0]))
    at = [
        g.constant("batch", [[[[0]]]]),
        g.constant("head", np.arange(heads).reshape(1, heads, 1, 1)),
        g.std("Unsqueeze", g.std("Range", zero, end, step), axes),
    ]
    return g.op("Concat", [g.std("Expand", i, rows) for i in at], {"axis": -1})


def _pairs(n: int) -> np.ndarray:
    """[n, n / 2], by which codes of 4 bits times it are bytes: the even ones low, the odd high."""
    matrix, column = np.zeros((n, n // 2), np.uint8), np.arange(n // 2)
    matrix[2 * column, column], matrix[2 * column + 1, column] = 1, 16
    return matrix
