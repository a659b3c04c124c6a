"""An ExecuTorch program, written instruction by instruction with ExecuTorch's own schema.

A `Method` is a list of calls of kernels and delegates over values; `write` makes the .pte of
several. A delegate is instantiated once in a method however often it is called, so a runtime packs
its weights once: what ExecuTorch's emitter makes of a loop that was unrolled is an instance a call.

Shapes are tuples in which None stands for the number of tokens, known only at run time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.utils._pytree as pytree
from executorch.exir import schema
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir._serialize.data_serializer import DataPayload
from executorch.exir.scalar_type import ScalarType
from executorch.exir.tensor_layout import TensorLayout
from executorch.exir.version import EXECUTORCH_SCHEMA_VERSION
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

from .delegate import Shape, XnnpackGraph

TYPES = {
    np.dtype(np.float32): ScalarType.FLOAT,
    np.dtype(np.int64): ScalarType.LONG,
    np.dtype(np.int8): ScalarType.CHAR,
    np.dtype(np.uint8): ScalarType.BYTE,
}
SCRATCH, STATE = 1, 2  # memory ids: what a call computes, and what stays between calls
ALIGNMENT = 64
Scalar = int | float | bool | None


@dataclass(frozen=True)
class Delegate:
    """A serialized delegate and the shapes of what it takes and returns."""

    payload: bytes
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]

    @classmethod
    def of(cls, graph: XnnpackGraph) -> "Delegate":
        """`graph`, serialized."""
        return cls(graph.serialize(), tuple(graph.inputs), tuple(graph.outputs))


@dataclass
class Constants:
    """Tensors for kernels, shared by all methods: in the program, or in a `store` apart from it."""

    store: NamedDataStore | None = None
    buffers: list[bytes] = field(default_factory=lambda: [b""])  # the first stands for "none"

    def add(self, array: np.ndarray) -> int | str:
        """The index of `array`'s bytes, or its name in the store; the same for the same content."""
        data = np.ascontiguousarray(array).tobytes()
        if self.store is not None:
            kind = TYPES[array.dtype]
            key = hashlib.sha256(repr((kind, array.shape)).encode() + data).hexdigest()
            layout = TensorLayout(kind, list(array.shape), list(range(array.ndim)))
            self.store.add_named_data(key, data, ALIGNMENT, tensor_layout=layout)
            return key
        if data not in self.buffers:
            self.buffers.append(data)
        return self.buffers.index(data)


class Method:
    """One entry point. Values are indices; `max_tokens` bounds the None of shapes."""

    def __init__(self, name: str, constants: Constants, max_tokens: int) -> None:
        self.name, self.max_tokens = name, max_tokens
        self._constants = constants
        self._values: list[schema.KernelTypes] = []
        self._scalars: dict[tuple[type, Scalar], int] = {}
        self._operators: list[tuple[str, str]] = []
        self._calls: list[schema.KernelCall | schema.DelegateCall | schema.JumpFalseCall] = []
        self._delegates: list[bytes] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._state_bytes = 0

    def input(self, *shape: int | None) -> int:
        """The next argument: an int64 tensor, which the caller owns."""
        self._inputs.append(self._tensor(shape, np.dtype(np.int64)))
        return self._inputs[-1]

    def output(self, value: int) -> None:
        """The next result."""
        self._outputs.append(value)

    def constant(self, array: np.ndarray) -> int:
        """A tensor of the file."""
        at = self._constants.add(array)
        if isinstance(at, int):
            return self._tensor(array.shape, array.dtype, buffer=at)
        apart = schema.TensorDataLocation.EXTERNAL
        info = schema.ExtraTensorInfo(fully_qualified_name=at, location=apart)
        return self._tensor(array.shape, array.dtype, info=info)

    def state(self, *shape: int) -> int:
        """A float32 tensor whose content stays between calls; zero or undefined at first."""
        value = self._tensor(shape, np.dtype(np.float32))
        self._place(value, STATE, self._state_bytes)
        self._state_bytes += _aligned(self._bytes(value))
        return value

    def scalar(self, value: Scalar) -> int:
        """A number, truth value or None."""
        key = (type(value), value)
        if key not in self._scalars:
            self._scalars[key] = self._new(_evalue(value))
        return self._scalars[key]

    def symbol(self) -> int:
        """An integer that a kernel sets."""
        return self._new(schema.Int(0))

    def flag(self) -> int:
        """A truth value that a kernel sets."""
        return self._new(schema.Bool(False))

    def tensor(self, *shape: int | None) -> int:
        """A float32 tensor that kernels write as their `out`, from wherever they are called."""
        return self._tensor(shape, np.dtype(np.float32))

    def jump_unless(self, flag: int) -> schema.JumpFalseCall:
        """Leave out the calls up to where that `land`s, unless `flag` is true."""
        jump = schema.JumpFalseCall(flag, -1)
        self._calls.append(jump)
        return jump

    def land(self, jump: schema.JumpFalseCall) -> None:
        """The next call is where `jump` goes."""
        jump.destination_instruction = len(self._calls)

    def kernel(self, name: str, *arguments: int, out: int | None = None) -> None:
        """Call the kernel `name` ("aten::add.out"); `out` stands for both argument and result."""
        operator, _, overload = name.partition(".")
        if (operator, overload) not in self._operators:
            self._operators.append((operator, overload))
        index = self._operators.index((operator, overload))
        results = () if out is None else (out, out)
        self._calls.append(schema.KernelCall(index, [*arguments, *results]))

    def compute(self, name: str, *arguments: int, shape: Shape, dtype: type = np.float32) -> int:
        """The new tensor that the kernel `name` writes."""
        out = self._tensor(shape, np.dtype(dtype))
        self.kernel(name, *arguments, out=out)
        return out

    def compute_two(self, name: str, *arguments: int, shape: Shape) -> tuple[int, int]:
        """The two new tensors that the kernel `name` writes, which takes them as arguments only."""
        first, second = (self._tensor(shape, np.dtype(np.float32)) for _ in range(2))
        self.kernel(name, *arguments, first, second)
        return first, second

    def delegate(self, delegate: Delegate, *arguments: int) -> tuple[int, ...]:
        """What `delegate` returns for `arguments`."""
        assert len(arguments) == len(delegate.inputs), (len(arguments), delegate.inputs)
        if delegate.payload not in self._delegates:
            self._delegates.append(delegate.payload)
        results = [self._tensor(shape, np.dtype(np.float32)) for shape in delegate.outputs]
        index = self._delegates.index(delegate.payload)
        self._calls.append(schema.DelegateCall(index, [*arguments, *results]))
        return tuple(results)

    def plan(self, payloads: list[bytes]) -> schema.ExecutionPlan:
        """The method as the schema has it; its delegates' payloads are added to `payloads`."""
        scratch = self._plan_memory()
        payloads.extend(p for p in self._delegates if p not in payloads)
        tree = tuple(0 for _ in self._inputs)
        return schema.ExecutionPlan(
            name=self.name,
            container_meta_type=schema.ContainerMetadata(
                pytree.treespec_dumps(pytree.tree_structure((tree, {}))),
                pytree.treespec_dumps(pytree.tree_structure(tuple(self._outputs))),
            ),
            values=[schema.EValue(value) for value in self._values],
            inputs=self._inputs,
            outputs=self._outputs,
            chains=[schema.Chain([], [], [schema.Instruction(c) for c in self._calls], None)],
            operators=[schema.Operator(*names) for names in self._operators],
            delegates=[_backend(payloads.index(p)) for p in self._delegates],
            non_const_buffer_sizes=[0, scratch, self._state_bytes],
        )

    def _plan_memory(self) -> int:
        """Give each computed tensor a place that nothing alive with it has; the bytes needed."""
        lives: dict[int, list[int]] = {}
        for at, call in enumerate(self._calls):
            for value in getattr(call, "args", ()):  # a jump has none
                tensor = self._values[value]
                if isinstance(tensor, schema.Tensor) and self._is_scratch(value):
                    lives.setdefault(value, [at, at])[1] = at
        for value in self._outputs:
            lives[value][1] = len(self._calls)
        placed: list[tuple[int, int, int]] = []  # value, begin, end
        for value in sorted(lives, key=self._bytes, reverse=True):
            begin = 0
            size = _aligned(self._bytes(value))
            for other, low, high in sorted(placed, key=lambda p: p[1]):
                if _overlap(lives[value], lives[other]) and low < begin + size and begin < high:
                    begin = high
            self._place(value, SCRATCH, begin)
            placed.append((value, begin, begin + size))
        return max((high for _, _, high in placed), default=0)

    def _is_scratch(self, value: int) -> bool:
        tensor = self._values[value]
        assert isinstance(tensor, schema.Tensor)
        placed = tensor.allocation_info or tensor.data_buffer_idx or tensor.extra_tensor_info
        return not placed and value not in self._inputs

    def _place(self, value: int, memory: int, offset: int) -> None:
        tensor = self._values[value]
        assert isinstance(tensor, schema.Tensor)
        tensor.allocation_info = schema.AllocationDetails(memory, offset & 0xFFFFFFFF, offset >> 32)

    def _bytes(self, value: int) -> int:
        tensor = self._values[value]
        assert isinstance(tensor, schema.Tensor)
        width = next(t.itemsize for t, kind in TYPES.items() if kind == tensor.scalar_type)
        return int(np.prod(tensor.sizes, dtype=np.int64)) * width

    def _tensor(
        self,
        shape: Shape,
        dtype: np.dtype,
        buffer: int = 0,
        info: schema.ExtraTensorInfo | None = None,
    ) -> int:
        dynamism = schema.TensorShapeDynamism
        return self._new(
            schema.Tensor(
                scalar_type=TYPES[dtype],
                storage_offset=0,
                sizes=[self.max_tokens if n is None else n for n in shape],
                dim_order=list(range(len(shape))),
                requires_grad=False,
                layout=0,
                data_buffer_idx=buffer,
                allocation_info=None,
                shape_dynamism=dynamism.DYNAMIC_BOUND if None in shape else dynamism.STATIC,
                extra_tensor_info=info,
            )
        )

    def _new(self, value: schema.KernelTypes) -> int:
        self._values.append(value)
        return len(self._values) - 1


def write(
    path: Path,
    methods: Sequence[Method],
    constants: Constants,
    store: NamedDataStore,
    metadata: Mapping[str, Scalar | list[int]],
) -> None:
    """Write the .pte of `methods`, with what lies in `store`.

    Each of `metadata` becomes a method that returns its value.
    """
    payloads: list[bytes] = []
    plans = [method.plan(payloads) for method in methods]
    plans += [_getter(name, value) for name, value in metadata.items()]
    program = schema.Program(
        version=EXECUTORCH_SCHEMA_VERSION,
        execution_plan=plans,
        constant_buffer=[schema.Buffer(data) for data in constants.buffers],
        backend_delegate_data=[schema.BackendDelegateInlineData(p) for p in payloads],
        segments=[],
        constant_segment=schema.SubsegmentOffsets(segment_index=0, offsets=[]),
    )
    named = store.get_named_data_store_output()
    file = PTEFile(program=program, mutable_data=None, named_data=named)
    data = serialize_pte_binary(file, extract_delegate_segments=True)
    with path.open("wb") as out:
        data.write_to_file(out)


def write_data(path: Path, store: NamedDataStore) -> None:
    """Write what lies in `store` as the .ptd that programs share."""
    named = store.get_named_data_store_output()
    data = FlatTensorSerializer().serialize(DataPayload(named.buffers, named.pte_data))
    with path.open("wb") as out:
        data.write_to_file(out)


def _getter(name: str, value: Scalar | list[int]) -> schema.ExecutionPlan:
    values = value if isinstance(value, list) else [value]
    return schema.ExecutionPlan(
        name=name,
        container_meta_type=schema.ContainerMetadata(
            "", pytree.treespec_dumps(pytree.tree_structure(value))
        ),
        values=[schema.EValue(_evalue(v)) for v in values],
        inputs=[],
        outputs=list(range(len(values))),
        chains=[schema.Chain([], [], [], None)],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=[0],
    )


def _backend(payload: int) -> schema.BackendDelegate:
    where = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, payload)
    return schema.BackendDelegate("XnnpackBackend", where, [])


def _evalue(value: Scalar) -> schema.KernelTypes:
    if value is None:
        return schema.Null()
    if isinstance(value, bool):
        return schema.Bool(value)
    return schema.Int(value) if isinstance(value, int) else schema.Double(value)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _overlap(a: list[int], b: list[int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
