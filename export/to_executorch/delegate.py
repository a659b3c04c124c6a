"""One XNNPACK delegate, written node by node with ExecuTorch's own schema and serializer.

Written instead of traced: `torch.export` and the partitioner take about ten seconds of CPU for a
piece of a layer, and every layer of a stack is the same graph over other weights. Weights go into
a store that the whole program shares, under the hash of their bytes, so each is stored once.

Shapes are tuples in which None stands for the number of tokens, known only at run time.
"""

import hashlib
from dataclasses import dataclass

import executorch.backends.xnnpack.serialization.xnnpack_graph_schema as xnn
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
    serialize_xnnpack_binary,
)
from executorch.exir._serialize._named_data_store import NamedDataStore

from .weights import Linear

Shape = tuple[int | None, ...]
FP32 = xnn.XNNDatatype.xnn_datatype_fp32
NONE = 0xFFFFFFFF  # XNN_INVALID_VALUE_ID
EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2
IN_STORE = 0xFFFFFFFFFFFFFFFF  # offset of data that is found by its name


@dataclass(frozen=True)
class Value:
    """A tensor of the graph."""

    id: int
    shape: Shape


class XnnpackGraph:
    """Builds a delegate for calls of at most `max_tokens` tokens. Call inputs before outputs."""

    def __init__(self, store: NamedDataStore, max_tokens: int) -> None:
        self._store, self._max_tokens = store, max_tokens
        self._nodes: list[xnn.XNode] = []
        self._values: list[xnn.XNNTensorValue] = []
        self._quantization: dict[int, xnn.XNNQuantParams] = {}
        self._constants = [xnn.ConstantDataOffset(0, 0)]
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._quantized: dict[int, Value] = {}
        self.inputs: list[Shape] = []
        self.outputs: list[Shape] = []

    def input(self, *shape: int | None) -> Value:
        """The next argument of a call."""
        value = self._value(shape)
        self._external(value, EXTERNAL_INPUT, self._inputs)
        self.inputs.append(shape)
        return value

    def output(self, value: Value) -> None:
        """The next result of a call; in the arguments, results follow the inputs."""
        self._external(value, EXTERNAL_OUTPUT, self._outputs)
        self.outputs.append(value.shape)

    def add(self, a: Value, b: Value) -> Value:
        """a + b, of a's shape; b may have ones in it."""
        return self._binary(xnn.XNNAdd, a, b)

    def subtract(self, a: Value, b: Value) -> Value:
        """a - b, of a's shape."""
        return self._binary(xnn.XNNSubtract, a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        """a * b, of a's shape."""
        return self._binary(xnn.XNNMultiply, a, b)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x))."""
        return self._unary(xnn.XNNSigmoid, x)

    def rsqrt(self, x: Value) -> Value:
        """1 / sqrt(x)."""
        return self._unary(xnn.XNNReciprocalSquareRoot, x)

    def reshape(self, x: Value, *shape: int | None) -> Value:
        """x in another shape."""
        out, sizes = self._value(shape), [0 if n is None else n for n in shape]
        self._add(xnn.XNNStaticReshape(len(sizes), sizes, x.id, out.id, 0))
        return out

    def concatenate(self, a: Value, b: Value) -> Value:
        """a and b side by side along the last axis."""
        last = (a.shape[-1] or 0) + (b.shape[-1] or 0)
        out, axis = self._value((*a.shape[:-1], last)), len(a.shape) - 1
        ids = (a.id, b.id, NONE, NONE, out.id)
        self._add(xnn.XNNConcatenate2(axis, *ids, flags=0, input5_id=NONE))
        return out

    def linear(self, x: Value, weight: Linear, bias: bytes | None = None) -> Value:
        """x W^T + bias. For a quantized W, x is quantized to 8 bits a token (once per x)."""
        source = x if weight.bits == 32 else self._quantize(x)
        added = NONE if bias is None else self._constant((weight.shape[0],), bias).id
        ids = (source.id, self._weight(weight).id, added)
        out = self._value((*x.shape[:-1], weight.shape[0]))
        self._add(xnn.XNNFullyConnected(*ids, out.id, 0))
        return out

    def serialize(self) -> bytes:
        """The delegate's payload."""
        graph = xnn.XNNGraph(
            version="0",
            xnodes=self._nodes,
            xvalues=[self._described(value) for value in self._values],
            num_externs=len(self._inputs) + len(self._outputs),
            input_ids=self._inputs,
            output_ids=self._outputs,
            constant_data=self._constants,
        )
        return serialize_xnnpack_binary(graph, bytearray())

    def _described(self, value: xnn.XNNTensorValue) -> xnn.XValue:
        quantized = self._quantization.get(value.id_out)
        return xnn.XValue(xnn.XNNQuantizedTensorValue(value, quantized) if quantized else value)

    def _external(self, value: Value, flag: int, ids: list[int]) -> None:
        tensor = self._values[value.id]
        assert tensor.flags == 0, f"value {value.id} is an input or output already"
        tensor.flags, tensor.external_id = flag, len(self._inputs) + len(self._outputs)
        ids.append(value.id)

    def _value(self, shape: Shape, datatype: xnn.XNNDatatype = FP32, buffer: int = 0) -> Value:
        dims, id = [self._max_tokens if n is None else n for n in shape], len(self._values)
        self._values.append(
            xnn.XNNTensorValue(
                datatype=datatype,
                num_dims=len(dims),
                dims=dims,
                constant_buffer_idx=buffer,
                external_id=NONE,
                flags=0,
                id_out=id,
            )
        )
        return Value(id, shape)

    def _add(self, node: xnn.XNodeUnion) -> None:
        self._nodes.append(xnn.XNode(node, debug_handle=len(self._nodes)))

    def _unary(self, kind: type[xnn.XNNNode1x1], x: Value) -> Value:
        out = self._value(x.shape)
        self._add(kind(x.id, out.id, 0))  # type: ignore[arg-type]
        return out

    def _binary(self, kind: type[xnn.XNNNode2x1], a: Value, b: Value) -> Value:
        out = self._value(a.shape)
        self._add(kind(a.id, b.id, out.id, 0))  # type: ignore[arg-type]
        return out

    def _quantize(self, x: Value) -> Value:
        if x.id not in self._quantized:
            out = self._value(x.shape, xnn.XNNDatatype.xnn_datatype_qdint8)
            self._quantization[out.id] = xnn.PerTokenDynamicQuant(num_nonbatch_dims=1)
            self._add(xnn.XNNConvert(x.id, out.id, 0))
            self._quantized[x.id] = out
        return self._quantized[x.id]

    def _weight(self, weight: Linear) -> Value:
        if weight.bits == 32:
            return self._constant(weight.shape, weight.data)
        kind = xnn.XNNDatatype
        datatype = kind.xnn_datatype_qbint4 if weight.bits == 4 else kind.xnn_datatype_qcint8
        value = self._value(weight.shape, datatype, self._stored(weight.data))
        count = len(weight.scales) // (2 if weight.bits == 4 else 4)
        scales = {"scale": [], "channel_dim": 0, "num_scales": count}
        scales["scale_buffer_idx"] = self._stored(weight.scales)
        if weight.bits == 4:
            grouped = xnn.PerChannelGroupQuant(group_size=weight.group_size, **scales)
            self._quantization[value.id] = grouped
        else:
            self._quantization[value.id] = xnn.PerChannelQuant(**scales)
        return value

    def _constant(self, shape: Shape, data: bytes) -> Value:
        return self._value(shape, FP32, self._stored(data))

    def _stored(self, data: bytes) -> int:
        key = hashlib.sha256(data).hexdigest()
        self._store.add_named_data(key, data, alignment=CONSTANT_TENSOR_ALIGNMENT)
        self._constants.append(xnn.ConstantDataOffset(IN_STORE, len(data), key))
        return len(self._constants) - 1
