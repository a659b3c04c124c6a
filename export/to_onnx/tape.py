"""The tape that the graph is recorded on: its inputs, outputs, constants, weights and branches."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike
from onnx_ir.tape import Tape

from hrm_edge import names
from hrm_edge.config import HRMTextConfig

from .weights import Weights

MS = "com.microsoft"
OPSETS = {"": 21, MS: 1}


class Graph(Tape):
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

    def either(
        self, wanted: ir.Value, yes: "Record", no: "Record", branches: tuple[str, str]
    ) -> ir.Value:
        """What `yes` or `no` give, as `wanted`, one bool, says: an `If` of their recordings.

        A cache that only one of them writes stays as it is in the other. A branch ends when all of
        it is done: slots that share their memory are written in the order of the passes.
        """
        tapes = [self._branch(), self._branch()]
        values = [record(tape) for record, tape in zip((yes, no), tapes, strict=True)]
        written = list(dict.fromkeys(part for tape in tapes for part in tape.present))
        graphs: list[ir.Graph] = []
        for tape, value, name in zip(tapes, values, branches, strict=True):
            caches = [tape.present.get(part, self.past[part]) for part in written]
            graphs.append(tape._subgraph([value, *caches], name))
        attributes: dict[str, ir.Graph] = {"then_branch": graphs[0], "else_branch": graphs[1]}
        value, *caches = self.op_multi_out("If", [wanted], attributes, num_outputs=1 + len(written))
        self.present |= zip(written, caches, strict=True)
        return value

    def _branch(self) -> "Graph":
        """A tape for one branch of an `If`: what is recorded there may use this graph's values."""
        inner = Graph(self.config, self.weights, self.kv_bits)
        inner.inputs, inner.past, inner._constants = self.inputs, self.past, self._constants
        inner._initializers = self._initializers
        return inner

    def _subgraph(self, outputs: list[ir.Value], name: str) -> ir.Graph:
        """What a branch recorded, `name` before all its values' names, to tell them from others.

        An output that is a value of the graph around it is handed through, as ONNX demands.
        """
        own = {value for node in self.nodes for value in node.outputs}
        outputs = [v if v in own else self.std("Identity", v) for v in outputs]
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


Record = Callable[[Graph], ir.Value]  # records on the tape it is given
