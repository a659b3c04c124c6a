"""The KV buffers of a session, bound once as the graph's past and present: written in place."""

import mmap
from typing import Protocol

import numpy as np
import onnxruntime as ort

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from . import providers


class KVBuffers(Protocol):
    """Buffers [2 * slots, heads, max_context, width]; key and value of each slot in turn."""

    def bind(self, binding: ort.IOBinding) -> None:
        """Make them the past and the present of `binding`."""
        ...

    def read(self, tokens: int) -> np.ndarray:
        """What the first `tokens` left, [2 * slots, heads, tokens, width]; maybe a view."""
        ...

    def write(self, cache: np.ndarray) -> None:
        """Take over what `read` gave."""
        ...


def kv_buffers(manifest: Manifest, max_context: int, provider: str) -> KVBuffers:
    """Buffers for `max_context` tokens in the memory that `provider` works in.

    Raises HRMEdgeError if they cannot be had.
    """
    device = providers.device(provider)
    if device == "cpu":
        return HostBuffers(manifest, max_context)
    return DeviceBuffers(manifest, max_context, device)


def _shape(manifest: Manifest, max_context: int) -> tuple[int, int, int, int]:
    """Of one buffer: [1, heads, max_context, width]; two 4-bit values share an element."""
    model = manifest.model
    width = model.head_dim // 2 if manifest.kv_cache.bits == 4 else model.head_dim
    return 1, model.num_attention_heads, max_context, width


def _names(manifest: Manifest) -> list[str]:
    slots = range(manifest.kv_cache.slots)
    return [f"{slot}.{part}" for slot in slots for part in ("key", "value")]


def _too_large(manifest: Manifest, max_context: int, error: Exception) -> HRMEdgeError:
    size = max_context * manifest.kv_cache.bytes_per_token / 2**30
    return HRMEdgeError(
        f"a KV cache for {max_context} tokens takes {size:.1f} GiB, more than can be had "
        f"({str(error).splitlines()[0]}); use a smaller max_context"
    )


class HostBuffers:
    """One anonymous mapping, whose pages the system commits when they are first written."""

    def __init__(self, manifest: Manifest, max_context: int) -> None:
        self._names, self._shape = _names(manifest), _shape(manifest, max_context)
        self._dtype = np.dtype(manifest.kv_cache.dtype)
        each = int(np.prod(self._shape)) * self._dtype.itemsize
        try:
            self._memory = mmap.mmap(-1, len(self._names) * each)
        except (OSError, OverflowError) as error:
            raise _too_large(manifest, max_context, error) from None
        flat = np.frombuffer(self._memory, np.uint8).view(self._dtype)
        self._view = flat.reshape(len(self._names), *self._shape[1:])

    def bind(self, binding: ort.IOBinding) -> None:
        """As KVBuffers says."""
        for name, array in zip(self._names, self._view, strict=True):
            buffer = ("cpu", 0, self._dtype, self._shape, array.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *buffer)
            binding.bind_output(f"present.{name}", *buffer)

    def read(self, tokens: int) -> np.ndarray:
        """As KVBuffers says; a view."""
        return self._view[:, :, :tokens]

    def write(self, cache: np.ndarray) -> None:
        """As KVBuffers says."""
        room = self.read(cache.shape[2])
        assert (cache.shape, cache.dtype) == (room.shape, room.dtype), (cache.shape, room.shape)
        room[:] = cache


class DeviceBuffers:
    """OrtValues in the memory of a device, where they stay from call to call."""

    def __init__(self, manifest: Manifest, max_context: int, device: str) -> None:
        shape, dtype = _shape(manifest, max_context), np.dtype(manifest.kv_cache.dtype)
        try:
            self._values = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
                for name in _names(manifest)
            }
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise _too_large(manifest, max_context, error) from None

    def bind(self, binding: ort.IOBinding) -> None:
        """As KVBuffers says."""
        for name, value in self._values.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)

    def read(self, tokens: int) -> np.ndarray:
        """As KVBuffers says; a copy."""
        return np.concatenate([value.numpy()[:, :, :tokens] for value in self._values.values()])

    def write(self, cache: np.ndarray) -> None:
        """As KVBuffers says."""
        for value, part in zip(self._values.values(), cache, strict=True):
            whole = value.numpy().copy()
            whole[0, :, : cache.shape[2]] = part
            value.update_inplace(whole)
