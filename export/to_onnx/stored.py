"""What an ONNX bundle really stores: its weights as float32, and the scales of its KV cache."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hrm_edge.config import HRMTextConfig
from hrm_edge.names import EMBEDDING, HEAD, PAST

from ..quantize.grid import Quantized, dequantize
from ..quantize.kv_scales import round_cache

CODES = (".head_codes", ".codes")
K_SCALE, V_SCALE, K_CACHE = 12, 13, 3  # inputs of GroupQueryAttention


@dataclass(frozen=True)
class StoredWeight:
    """Initializers of one quantized linear or table, and how they are to be read."""

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    bits: int
    group_size: int


@dataclass(frozen=True)
class StoredCache:
    """How one slot keeps K and V: scales [heads, 1, head_dim] and their bits."""

    bits: int
    k_scale: np.ndarray
    v_scale: np.ndarray

    def round(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """k and v [T, heads, head_dim] as attention reads them back."""
        return round_cache(k, self.k_scale, self.bits), round_cache(v, self.v_scale, self.bits)


class StoredModel:
    """The quantized parts of a bundle's graph by hub name and cache slot; read from the file."""

    def __init__(self, model: Path, config: HRMTextConfig) -> None:
        self.config = config
        self.weights: dict[str, StoredWeight] = {}
        self.caches: dict[int, StoredCache] = {}
        self._file = ir.load(model)
        for node in ir.traversal.RecursiveGraphIterator(self._file.graph):
            if node.op_type == "MatMulNBits":
                self._add_weight(node, 1, 2, 3)
            elif node.op_type == "GatherBlockQuantized":
                self._add_weight(node, 0, 2, 3)
            elif node.op_type == "GroupQueryAttention":
                self._add_cache(node)

    def float32(self, name: str) -> np.ndarray | None:
        """The values [N, K] that stand for `name` (the embedding unscaled); None if unquantized."""
        stored = self.weights.get(name)
        if stored is None:
            return None
        rows, columns = self.config.tensor_shapes().get(name) or self._table_shape()
        codes, scales = _array(stored.codes), _array(stored.scales)
        zeros = None if stored.zero_points is None else _array(stored.zero_points)
        width = stored.group_size * stored.bits // 8
        codes = codes.reshape(rows, -1)
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % width))).reshape(rows, -1, width)
        quantized = Quantized(codes, scales.reshape(rows, -1).astype(np.float32), zeros)
        values = dequantize(quantized, stored.bits, columns)
        return values / np.float32(self.config.embedding_scale) if name == EMBEDDING else values

    def _table_shape(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.hidden_size

    def _add_weight(self, node: ir.Node, codes: int, scales: int, zeros: int) -> None:
        values = node.inputs[codes]
        assert values is not None and values.name is not None
        suffix = next(s for s in CODES if values.name.endswith(s))
        gathered = node.op_type == "GatherBlockQuantized"
        name = values.name.removesuffix(suffix)
        name = HEAD if name == EMBEDDING and not gathered else name
        points = node.inputs[zeros] if len(node.inputs) > zeros else None
        scale = node.inputs[scales]
        assert scale is not None
        bits, group = (node.attributes[a].as_int() for a in ("bits", "block_size"))
        self.weights[name] = StoredWeight(values, scale, points, bits, group)

    def _add_cache(self, node: ir.Node) -> None:
        if len(node.inputs) <= V_SCALE:
            return
        k, v, past = (node.inputs[i] for i in (K_SCALE, V_SCALE, K_CACHE))
        assert k is not None and v is not None and past is not None and past.name is not None
        slot = int(past.name.removeprefix(PAST).partition(".")[0])
        bits = node.attributes["kv_cache_bit_width"].as_int()
        self.caches[slot] = StoredCache(bits, _array(k), _array(v))


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None, value.name
    return value.const_value.numpy()
