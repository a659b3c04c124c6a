"""One forward pass as an ExecuTorch method.

`forward(tokens [1, S], start_pos [1]) -> logits [1, V]` of the last token. The passes are unrolled
into calls of one delegate for each piece of a layer; between two of them lies an attention. A token
attends to all that was read before and to all of its own call: the first call is the bidirectional
prefix, and what follows comes one token at a time. Where a plan leaves L passes out of that, the
method has a second list of calls of the same delegates, to which it jumps behind the prefix.

With MagicNorm as an op of its own there are three delegates a layer, and the op between them.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    kept: tuple[int, ...]  # in the place of which slot each cache slot lies
    plan: tuple[bool, ...]  # which passes run behind the prefix


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
    run = _Run(method, parts, _Attention(method, config, parts.kept, position), angles)
    hidden = method.tensor(1, config.hidden_size)
    everything = (True,) * len(config.passes)
    if parts.plan == everything:
        run.passes(everything, z_l, z_h, hidden)
    else:
        first = method.flag()
        method.kernel("executorch_prim::eq.Scalar", position, method.scalar(0), first)
        prefix = method.jump_unless(first)
        run.passes(everything, z_l, z_h, hidden)
        done = method.jump_unless(method.scalar(False))
        method.land(prefix)
        run.passes(parts.plan, z_l, z_h, hidden)
        method.land(done)
    (logits,) = method.delegate(parts.head, hidden)
    method.output(logits)
    return method


@dataclass(frozen=True)
class _Run:
    """What all passes of a method share."""

    method: Method
    parts: Parts
    attention: "_Attention"
    angles: tuple[int, ...]

    def passes(self, plan: Sequence[bool], z_l: int, z_h: int, hidden: int) -> None:
        """Those passes of `plan`; the last token's z_H goes into `hidden` [1, D]."""
        method, config = self.method, self.parts.config
        for turn, stack in enumerate(config.passes):
            if not plan[turn]:
                continue
            state, skip = (z_l, z_h) if stack == "L" else (z_h, z_l)
            pieces, slots = self.parts.stacks[stack], _slots(config, turn)
            if isinstance(pieces, Pieces):
                state = _pass(self, pieces, slots, state, skip)
            else:
                state = _pass_with_op(self, pieces, slots, state, skip)
            z_l, z_h = (state, z_h) if stack == "L" else (z_l, state)
        axis, last = method.scalar(1), method.scalar(-1)
        method.kernel("aten::select_copy.int_out", z_h, axis, last, out=hidden)


def _slots(config: HRMTextConfig, turn: int) -> Iterator[int]:
    """The cache slots of the pass `turn`, layer by layer."""
    layers = config.layers_per_stack
    return iter(range(turn * layers, (turn + 1) * layers))


def _pass(run: _Run, pieces: Pieces, slots: Iterator[int], state: int, skip: int) -> int:
    method, attention = run.method, run.attention
    gate, *qkv, residual = method.delegate(pieces.entry, state, skip, *run.angles)
    for between in pieces.between:
        mixed = attention(next(slots), *qkv)
        gate, *qkv, residual = method.delegate(between, mixed, gate, residual, *run.angles)
    (state,) = method.delegate(pieces.exit, attention(next(slots), *qkv), gate, residual)
    return state


def _pass_with_op(
    run: _Run, layers: tuple[Layer, ...], slots: Iterator[int], state: int, skip: int
) -> int:
    method, config = run.method, run.parts.config
    eps, shape = method.scalar(config.rms_norm_eps), (1, None, config.hidden_size)

    def magic_norm(x: int, skip: int) -> tuple[int, int]:
        return method.compute_two(MAGIC_NORM, x, skip, eps, shape=shape)

    normed, residual = magic_norm(state, skip)
    for layer in layers:
        gate, *qkv = method.delegate(layer.project, normed, *run.angles)
        (mixed,) = method.delegate(layer.mix, run.attention(next(slots), *qkv), gate)
        normed, residual = magic_norm(mixed, residual)
        normed, residual = magic_norm(*method.delegate(layer.mlp, normed), residual)
    return normed


class _Attention:
    """Attention over the cache, whose slots lie in the places of `kept`."""

    def __init__(
        self, method: Method, config: HRMTextConfig, kept: Sequence[int], position: int
    ) -> None:
        self._method, self._kept, self._position = method, kept, position
        self._places: dict[int, tuple[int, int]] = {}  # keys and values
        self._shape = (1, method.max_tokens, config.num_attention_heads, config.head_dim)
        self._causal = method.scalar(not config.prefix_lm)
        self._unused = method.state(1)  # the results of writing to the cache

    def __call__(self, slot: int, q: int, k: int, v: int) -> int:
        """Append k and v to the slot and attend with q; all [1, S, heads, head_dim]."""
        method, position, place = self._method, self._position, self._kept[slot]
        if place not in self._places:
            self._places[place] = method.state(*self._shape), method.state(*self._shape)
        keys, values = self._places[place]
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
