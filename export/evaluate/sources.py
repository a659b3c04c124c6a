"""The parts of a quantized model that can be switched on one by one, to see what each costs."""

import numpy as np

from hrm_edge.names import EMBEDDING, HEAD, place

from ..reference.forward import Variant
from ..to_onnx.stored import StoredModel

SOURCES = ("weights", "activations", "head", "embedding", "kv_cache")


class Source(Variant):
    """The original model with one of SOURCES (or, given several, all of those) as stored."""

    def __init__(self, stored: StoredModel, *sources: str) -> None:
        self._stored, self._sources = stored, frozenset(sources)

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        kind = {EMBEDDING: "embedding", HEAD: "head"}.get(name, "weights")
        return self._stored.float32(name) if kind in self._sources else None

    def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
        stored = self._stored.weights.get(name)
        if stored is None or "activations" not in self._sources:
            return x
        return int8_inputs(x, stored.group_size)

    def cache(
        self, name: str, turn: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if "kv_cache" not in self._sources:
            return k, v
        _, layer = place(name)
        cache = self._stored.caches.get(turn * self._stored.config.layers_per_stack + layer)
        return (k, v) if cache is None else cache.round(k, v)


def present(stored: StoredModel) -> tuple[str, ...]:
    """Those of SOURCES that the model has."""
    names = set(stored.weights)
    has = {
        "weights": bool(names - {EMBEDDING, HEAD}),
        "activations": bool(names - {EMBEDDING}),
        "head": HEAD in names,
        "embedding": EMBEDDING in names,
        "kv_cache": bool(stored.caches),
    }
    return tuple(source for source in SOURCES if has[source])


def int8_inputs(x: np.ndarray, group_size: int) -> np.ndarray:
    """x [T, K] as MatMulNBits reads it at accuracy level 4: int8 with a scale for each group."""
    columns = x.shape[1]
    x = np.pad(x, ((0, 0), (0, -columns % group_size))).reshape(len(x), -1, group_size)
    step = np.abs(x).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(x, step, out=np.zeros_like(x), where=step > 0))
    return (codes * step).reshape(len(x), -1)[:, :columns]
