"""A stack as XNNPACK delegates: what comes before its first attention, between two, and after.

Attention and the KV cache lie between delegates, since XNNPACK has neither. Where MagicNorm is an
op of its own (magic_norm.cpp), delegates end there too.

The halves of q and k that RoPE pairs are projected apart, so that rotating needs no slices, which
delegates can't have where the number of tokens is not fixed; the pairs are put in place again
afterwards.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from executorch.exir._serialize._named_data_store import NamedDataStore

from hrm_edge.config import HRMTextConfig
from hrm_edge.names import DOWN, GATE_UP, GQKV, HEAD, OUT, block
from hrm_edge.progress import track

from ..quantize.ggml import Blocks
from ..quantize.plan import Plan
from ..targets import row_length
from .delegate import Value, XnnpackGraph
from .program import Delegate
from .weights import Linear, Rows, linear


@dataclass(frozen=True)
class Pieces:
    """The delegates of a stack: (x, skip, cos, sin) -> `entry`, `between` each two layers, `exit`.

    All but the last return gate, q, k and v of the next attention, and residual; all but the first
    take the attention's output, gate and residual; `exit` returns the stack's normed state.
    """

    entry: Delegate
    between: tuple[Delegate, ...]
    exit: Delegate


@dataclass(frozen=True)
class Layer:
    """The delegates of a layer between whose linear parts MagicNorm is called.

    (normed, cos, sin) -> `project` -> gate, q, k, v; (attention's output, gate) -> `mix`; `mlp`.
    """

    project: Delegate
    mix: Delegate
    mlp: Delegate


@dataclass(frozen=True)
class Builder:
    """Builds delegates over the weights of `plan`."""

    plan: Plan
    store: NamedDataStore
    max_tokens: int

    @property
    def config(self) -> HRMTextConfig:
        """The model's."""
        return self.plan.checkpoint.config

    def stack(self, name: str) -> Pieces:
        """The delegates of stack `name`, "L" or "H"."""
        blocks = self._blocks(name)
        pairs = track(list(itertools.pairwise(blocks)), f"quantize {name}")
        between = tuple(self._between(*pair) for pair in pairs)
        return Pieces(self._entry(blocks[0]), between, self._exit(blocks[-1]))

    def layers(self, name: str) -> tuple[Layer, ...]:
        """The delegates of stack `name` without MagicNorm."""
        return tuple(
            Layer(self._project(block), self._mix(block), self._mlp(block))
            for block in track(self._blocks(name), f"quantize {name}")
        )

    def _blocks(self, name: str) -> list[str]:
        """What the names of the layers' tensors begin with."""
        return [block(name, i) for i in range(self.config.layers_per_stack)]

    def head(self) -> Delegate:
        """[1, D] -> [1, V]."""
        graph = self._graph()
        weight = self._linears(HEAD)(slice(None))
        graph.output(graph.linear(graph.input(1, self.config.hidden_size), weight))
        return Delegate.of(graph)

    def _entry(self, block: str) -> Delegate:
        graph = self._graph()
        x, skip = self._hidden(graph), self._hidden(graph)
        self._to_attention(graph, block, *magic_norm(graph, x, skip, self.config.rms_norm_eps))
        return Delegate.of(graph)

    def _between(self, block: str, following: str) -> Delegate:
        graph = self._graph()
        normed = self._from_attention(graph, block)
        self._to_attention(graph, following, *normed)
        return Delegate.of(graph)

    def _exit(self, block: str) -> Delegate:
        graph = self._graph()
        graph.output(self._from_attention(graph, block)[0])
        return Delegate.of(graph)

    def _project(self, block: str) -> Delegate:
        graph = self._graph()
        self._projected(graph, block, self._hidden(graph))
        return Delegate.of(graph)

    def _mix(self, block: str) -> Delegate:
        graph = self._graph()
        graph.output(self._mixed(graph, block))
        return Delegate.of(graph)

    def _mlp(self, block: str) -> Delegate:
        graph = self._graph()
        graph.output(self._fed_forward(graph, block, self._hidden(graph)))
        return Delegate.of(graph)

    def _to_attention(self, graph: XnnpackGraph, block: str, x: Value, residual: Value) -> None:
        """Results: those of `_projected`, and residual."""
        self._projected(graph, block, x)
        graph.output(residual)

    def _from_attention(self, graph: XnnpackGraph, block: str) -> tuple[Value, Value]:
        """Arguments: those of `_mixed`, and residual. Returns normed state and residual."""
        eps = self.config.rms_norm_eps
        mixed = self._mixed(graph, block)
        normed, residual = magic_norm(graph, mixed, self._hidden(graph), eps)
        return magic_norm(graph, self._fed_forward(graph, block, normed), residual, eps)

    def _projected(self, graph: XnnpackGraph, block: str, x: Value) -> None:
        """Results: gate [1, S, A], and q, k, v [1, S, heads, head_dim], rotated."""
        config = self.config
        heads, half = config.num_attention_heads, config.head_dim // 2
        weight = self._linears(f"{block}{GQKV}.weight")
        gate, q, k, v = np.split(np.arange(4 * config.attention_size), 4)  # rows of each
        cos, sin = graph.input(1, None, 1, half), graph.input(1, None, 1, half)

        def project(rows: np.ndarray) -> Value:
            return graph.linear(x, weight(rows))

        def rotated(rows: np.ndarray) -> Value:
            halves = rows.reshape(heads, 2, half)  # RoPE turns row i of a head with row i + half
            low, high = (
                graph.reshape(project(halves[:, i].reshape(-1)), 1, None, heads, half)
                for i in range(2)
            )
            first = graph.subtract(graph.multiply(low, cos), graph.multiply(high, sin))
            second = graph.add(graph.multiply(high, cos), graph.multiply(low, sin))
            return graph.concatenate(first, second)

        graph.output(graph.sigmoid(project(gate)))
        graph.output(rotated(q))
        graph.output(rotated(k))
        graph.output(graph.reshape(project(v), 1, None, heads, 2 * half))

    def _mixed(self, graph: XnnpackGraph, block: str) -> Value:
        """Arguments: attention's output, gate. Returns [1, S, D]."""
        width = self.config.attention_size
        mixed = graph.input(1, None, self.config.num_attention_heads, self.config.head_dim)
        gate = graph.input(1, None, width)
        out = self._linears(f"{block}{OUT}.weight")(slice(None))
        return graph.linear(graph.multiply(graph.reshape(mixed, 1, None, width), gate), out)

    def _fed_forward(self, graph: XnnpackGraph, block: str, x: Value) -> Value:
        weight, size = self._linears(f"{block}{GATE_UP}.weight"), self.config.intermediate_size
        gated = graph.linear(x, weight(slice(size)))
        up = graph.linear(x, weight(slice(size, None)))
        inner = graph.multiply(graph.multiply(gated, graph.sigmoid(gated)), up)
        return graph.linear(inner, self._linears(f"{block}{DOWN}.weight")(slice(None)))

    def _linears(self, name: str) -> Callable[[Rows], Linear]:
        """Rows of the tensor `name`, which the plan is asked for once, as linears."""
        tensor, form = self.plan.tensor(name), self.plan.format(name)
        assert not isinstance(tensor, Blocks), name
        columns = row_length(self.config, name)
        return lambda rows: linear(tensor, form, columns, rows)

    def _hidden(self, graph: XnnpackGraph) -> Value:
        return graph.input(1, None, self.config.hidden_size)

    def _graph(self) -> XnnpackGraph:
        return XnnpackGraph(self.store, self.max_tokens)


def magic_norm(graph: XnnpackGraph, x: Value, skip: Value, eps: float) -> tuple[Value, Value]:
    """(rms_norm(x + skip), x + skip): see `hrm_edge.model.magic_norm`.

    The mean is a linear layer with one output, whose bias is eps: XNNPACK's own means are over the
    last two of four axes.
    """
    residual = graph.add(x, skip)
    width = residual.shape[-1] or 0
    ones = np.full((1, width), 1 / width, np.float32)
    mean = Linear((1, width), 32, width, ones.tobytes())
    square = graph.linear(graph.multiply(residual, residual), mean, np.float32(eps).tobytes())
    return graph.multiply(residual, graph.rsqrt(square)), residual
