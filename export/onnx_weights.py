"""The external data file of an ONNX model, written tensor by tensor, each shared weight once."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hrm_edge.errors import HRMEdgeError

from .quantize import Quantized, quantize

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
        self,
        name: str,
        weight: np.ndarray,
        bits: int,
        group_size: int,
        quantized: Quantized | None = None,
    ) -> Weight:
        """Append a linear's float32 [N, K] weight with `bits`, or as it was `quantized` already."""
        n, k = weight.shape
        if bits >= 16:
            return Weight((n, k), bits, group_size, self.array(name, weight))
        quantized = quantized or quantize(weight, bits, group_size)
        codes = self.array(name + ".codes", quantized.codes)
        scales = self.array(name + ".scales", quantized.scales)
        zeros = quantized.zero_points
        points = None if zeros is None else self.array(name + ".zero_points", zeros)
        return Weight((n, k), bits, group_size, codes, scales, points)

    def table(self, name: str, weight: np.ndarray, scale: float, bits: int, group: int) -> Weight:
        """Append an embedding [V, D]; quantized, its rows are `scale` times the weight's."""
        v, d = weight.shape
        if bits >= 16:
            return Weight((v, d), bits, group, self.array(name, weight))
        quantized = quantize(weight, bits, group)
        codes = quantized.codes.reshape(v, -1)[:, : d * bits // 8]
        values = self.array(name + ".codes", codes)
        scales = self.array(name + ".scales", quantized.scales * np.float32(scale))
        return Weight((v, d), bits, group, values, scales)

    def tied(
        self, name: str, weight: np.ndarray, scale: float, bits: int, group: int
    ) -> tuple[Weight, Weight]:
        """Head and embedding over one table [V, D]; their scales differ, their codes are shared."""
        v, d = weight.shape
        if bits >= 16:
            both = self.table(name, weight, scale, bits, group)
            return both, both
        quantized = quantize(weight, bits, group)
        codes = self.array(name + ".head_codes", quantized.codes)
        rows = self._again(name + ".codes", codes, (v, d * bits // 8))
        plain = self.array(name + ".head_scales", quantized.scales)
        scaled = self.array(name + ".scales", quantized.scales * np.float32(scale))
        return Weight((v, d), bits, group, codes, plain), Weight((v, d), bits, group, rows, scaled)

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
