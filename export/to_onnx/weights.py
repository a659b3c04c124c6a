"""The external data file of an ONNX model, written tensor by tensor, each shared weight once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hrm_edge.errors import HRMEdgeError

from ..quantize.grid import Quantized
from ..recipe import Format

PAGE = 4096  # tensors of a page or more start on one, so that a runtime can map each of them
LINE = 64


@dataclass(frozen=True)
class Weight:
    """The initializers of a linear or table [N, K]: values as they are, or codes and scales."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    values: ir.Value
    scales: ir.Value | None = None
    zero_points: ir.Value | None = None


@dataclass
class Weights:
    """What the graph is built over: linears and tables by hub name, and plain arrays by name.

    `caches` are the K and V scales of each cache slot, if the cache is quantized.
    """

    linears: dict[str, Weight]
    arrays: dict[str, ir.Value]
    caches: dict[int, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def initializers(self) -> list[ir.Value]:
        """All initializers of the graph, each once."""
        values = dict.fromkeys(
            [*self.arrays.values(), *(s for c in self.caches.values() for s in c)]
        )
        for weight in self.linears.values():
            parts = (weight.values, weight.scales, weight.zero_points)
            values |= dict.fromkeys(v for v in parts if v is not None)
        return list(values)


class WeightFile:
    """Appends arrays to one data file and returns initializers that point into it.

    float32 arrays are stored as `dtype`.
    """

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._file = path.open("wb")

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def array(self, name: str, array: np.ndarray, exact: bool = False) -> ir.Value:
        """Append `array` and return it as the initializer `name`; `exact` keeps float32 as such.

        Raises HRMEdgeError if a value is too large for the file's dtype.
        """
        if array.dtype == np.float32 and not exact:
            array = _cast(name, array, self.dtype)
        alignment = PAGE if array.nbytes >= PAGE else LINE
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        dtype = ir.DataType.from_numpy(array.dtype)
        return self._initializer(name, offset, array.nbytes, dtype, array.shape)

    def weight(
        self, name: str, tensor: np.ndarray | Quantized, form: Format, shape: Sequence[int]
    ) -> Weight:
        """Append a linear's weight, [N, K] = `shape`, as it is or as codes with their scales."""
        n, k = shape
        if not isinstance(tensor, Quantized):
            return Weight((n, k), form.bits, form.group_size, self.array(name, tensor))
        codes = self.array(name + ".codes", tensor.codes)
        scales = self.array(name + ".scales", tensor.scales)
        zeros = tensor.zero_points
        points = None if zeros is None else self.array(name + ".zero_points", zeros)
        return Weight((n, k), form.bits, form.group_size, codes, scales, points)

    def table(
        self, name: str, tensor: np.ndarray | Quantized, form: Format, scale: float, width: int
    ) -> Weight:
        """Append an embedding [V, D = width]; as codes, its rows are `scale` times the weight's."""
        if not isinstance(tensor, Quantized):
            return Weight(
                (len(tensor), width), form.bits, form.group_size, self.array(name, tensor)
            )
        shape = (len(tensor.codes), width)
        codes = tensor.codes.reshape(len(tensor.codes), -1)[:, : width * form.bits // 8]
        values = self.array(name + ".codes", codes)
        scales = self.array(name + ".scales", tensor.scales * np.float32(scale))
        return Weight(shape, form.bits, form.group_size, values, scales)

    def tied(
        self, name: str, tensor: np.ndarray | Quantized, form: Format, scale: float, width: int
    ) -> tuple[Weight, Weight]:
        """Head and embedding over one table [V, D]; their scales differ, their codes are shared."""
        if not isinstance(tensor, Quantized):
            both = self.table(name, tensor, form, scale, width)
            return both, both
        shape, bits, group = (len(tensor.codes), width), form.bits, form.group_size
        codes = self.array(name + ".head_codes", tensor.codes)
        rows = self._again(name + ".codes", codes, (shape[0], width * bits // 8))
        plain = self.array(name + ".head_scales", tensor.scales)
        scaled = self.array(name + ".scales", tensor.scales * np.float32(scale))
        return Weight(shape, bits, group, codes, plain), Weight(shape, bits, group, rows, scaled)

    def _again(self, name: str, of: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The bytes of the initializer `of` under another name and shape; nothing is written."""
        tensor = of.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None and tensor.length is not None
        return self._initializer(name, tensor.offset, tensor.length, tensor.dtype, shape)

    def _initializer(
        self, name: str, offset: int, length: int, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        tensor = ir.ExternalTensor(
            self.path.name, offset, length, dtype, shape=ir.Shape(shape), name=name
        )
        kind, dims = ir.TensorType(dtype), ir.Shape(shape)
        return ir.Value(name=name, shape=dims, type=kind, const_value=tensor)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise HRMEdgeError(f"{name}: holds {np.abs(array).max():g}, too large for {dtype}")
    return cast
