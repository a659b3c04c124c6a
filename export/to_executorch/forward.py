"""One forward pass as an ExecuTorch method.

`forward(tokens [1, S], start_pos [1]) -> logits [1, V]` of the last token. The passes are unrolled
into calls of one delegate for each piece of a layer; between two of them lies an attention. A token
attends to all that was read before and to all of its own call: the first call is the bidirectional
prefix, and what follows comes one token at a time.

With MagicNorm as an op of its own there are three delegates a layer, and the op between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hrm_edge.config import HRMTextConfig
from hrm_edge.pte import MAGIC_NORM

from .program import Constants, Delegate, Method
from .stack import Layer, Pieces
from .weights import Table


@dataclass(frozen=True)
class Parts:
    """What a forward pass is made of, whatever its context length."""

    config: HRMTextConfig
    stacks: Mapping[str, Pieces | tuple[Layer, ...]]  # layers: MagicNorm is an op
    head: Delegate
    embedding: Table
    z_l_init: np.ndarray  # [D]
    rotary: tuple[np.ndarray, ...]  # cos and sin, [1, max_seq_len, 1, head_dim / 2] each


def forward(parts: Parts, constants: Constants, name: str, length: int) -> Method:
    """The method `name`, whose KV cache has room for `length` tokens."""
    method, config = Method(name, constants, length), parts.config
    tokens, start = method.input(1, None), method.input(1)
    count, position, end = method.symbol(), method.symbol(), method.symbol()
    method.kernel("aten::sym_size.int", tokens, method.scalar(1), count)
    method.kernel("aten::_local_scalar_dense", start, position)
    method.kernel("executorch_prim::add.Scalar", position, count, end)
    angles = tuple(_rows(method, values, position, end) for values in parts.rotary)
    z_h = _embed(method, parts.embedding, tokens, config.hidden_size)
    z_l = method.constant(parts.z_l_init[None, None])  # [1, 1, D], the same for every token
    attention = _Attention(method, config, position)
    for stack in config.passes:
        state, skip = (z_l, z_h) if stack == "L" else (z_h, z_l)
        pieces = parts.stacks[stack]
        if isinstance(pieces, Pieces):
            state = _pass(method, pieces, attention, (state, skip), angles)
        else:
            state = _pass_with_op(method, config, pieces, attention, (state, skip), angles)
        z_l, z_h = (state, z_h) if stack == "L" else (z_l, state)
    axis, last = method.scalar(1), method.scalar(-1)
    hidden = method.compute(
        "aten::select_copy.int_out", z_h, axis, last, shape=(1, config.hidden_size)
    )
    (logits,) = method.delegate(parts.head, hidden)
    method.output(logits)
    return method


def _pass(
    method: Method,
    pieces: Pieces,
    attention: "_Attention",
    inputs: tuple[int, int],
    angles: tuple[int, ...],
) -> int:
    gate, *qkv, residual = method.delegate(pieces.entry, *inputs, *angles)
    for between in pieces.between:
        mixed = attention(*qkv)
        gate, *qkv, residual = method.delegate(between, mixed, gate, residual, *angles)
    (state,) = method.delegate(pieces.exit, attention(*qkv), gate, residual)
    return state


def _pass_with_op(
    method: Method,
    config: HRMTextConfig,
    layers: tuple[Layer, ...],
    attention: "_Attention",
    inputs: tuple[int, int],
    angles: tuple[int, ...],
) -> int:
    eps, shape = method.scalar(config.rms_norm_eps), (1, None, config.hidden_size)

    def magic_norm(x: int, skip: int) -> tuple[int, int]:
        return method.compute_two(MAGIC_NORM, x, skip, eps, shape=shape)

    normed, residual = magic_norm(*inputs)
    for layer in layers:
        gate, *qkv = method.delegate(layer.project, normed, *angles)
        (mixed,) = method.delegate(layer.mix, attention(*qkv), gate)
        normed, residual = magic_norm(mixed, residual)
        normed, residual = magic_norm(*method.delegate(layer.mlp, normed), residual)
    return normed


class _Attention:
    """Each call is the attention of the next cache slot."""

    def __init__(self, method: Method, config: HRMTextConfig, position: int) -> None:
        self._method, self._position = method, position
        self._shape = (1, method.max_tokens, config.num_attention_heads, config.head_dim)
        self._causal = method.scalar(not config.prefix_lm)
        self._unused = method.state(1)  # the results of writing to the cache

    def __call__(self, q: int, k: int, v: int) -> int:
        """Append k and v to the slot and attend with q; all [1, S, heads, head_dim]."""
        method, position = self._method, self._position
        keys, values = method.state(*self._shape), method.state(*self._shape)
        for new, cache in ((k, keys), (v, values)):
            method.kernel("llama::update_cache.out", new, cache, position, out=self._unused)
        none, dropout = method.scalar(None), method.scalar(0.0)
        options = (position, none, dropout, self._causal, none)
        shape = (1, None, *self._shape[2:])
        return method.compute("llama::custom_sdpa.out", q, keys, values, *options, shape=shape)


def _rows(method: Method, values: np.ndarray, begin: int, end: int) -> int:
    """values[:, begin:end] for begin and end known at run time."""
    one = method.scalar(1)
    arguments = (method.constant(values), one, begin, end, one)
    shape = (1, None, *values.shape[2:])
    return method.compute("aten::slice_copy.Tensor_out", *arguments, shape=shape)


def _embed(method: Method, embedding: Table, tokens: int, width: int) -> int:
    values, shape = method.constant(embedding.values), (1, None, width)
    if embedding.scales is None:
        options = (method.scalar(-1), method.scalar(False), method.scalar(False))
        return method.compute("aten::embedding.out", values, tokens, *options, shape=shape)
    name = "embedding_4bit" if embedding.bits == 4 else "embedding_byte"
    half = 1 << (embedding.bits - 1)
    scales, none = method.constant(embedding.scales), method.scalar(None)
    limits = (method.scalar(-half), method.scalar(half - 1))
    arguments = (values, scales, none, *limits, tokens)
    return method.compute(f"quantized_decomposed::{name}.out", *arguments, shape=shape)
