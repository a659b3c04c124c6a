"""The KV buffers of a graph's rows, bound as its past and present: written in place.

What they are like, the graph says: the type and the shape of each of its `past_key_values` inputs.
"""

import contextlib
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import PAST, PRESENT
from hrm_edge.numerics import ort_dtype

from . import providers


class KVBuffers(Protocol):
    """A buffer [rows, heads, max_context, width] for the keys and one for the values of each slot.

    A row holds one sequence.
    """

    def bind(self, binding: ort.IOBinding, row: int, count: int) -> None:
        """Make `count` rows from `row` on the past and the present of `binding`."""
        ...

    def read(self, row: int, tokens: int) -> np.ndarray:
        """What the row's first `tokens` left in all buffers, one after the other: uint8 [bytes]."""
        ...

    def write(self, row: int, cache: np.ndarray, tokens: int) -> None:
        """Take over what `read(row, tokens)` gave. Raises ValueError if that has another size."""
        ...

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` of two rows."""
        ...


@dataclass(frozen=True)
class Layout:
    """Of one buffer: `name` is "<slot>.key" or "<slot>.value", `place` the one it lies in."""

    name: str
    place: str
    dtype: np.dtype
    shape: tuple[int, int, int, int]  # [rows, heads, max_context, width]

    @property
    def row_size(self) -> int:
        """Of a row, in bytes."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Of all rows, in bytes."""
        return self.shape[0] * self.row_size

    def part(self, base: int, row: int, count: int) -> tuple[np.dtype, tuple[int, ...], int]:
        """dtype, shape and address of `count` rows from `row` on, in a buffer at `base`."""
        return self.dtype, (count, *self.shape[1:]), base + row * self.row_size


def kv_buffers(
    session: ort.InferenceSession, rows: int, max_context: int, provider: str, kept: Sequence[int]
) -> KVBuffers:
    """Buffers of `rows` times `max_context` tokens, in the memory that `provider` works in.

    Slot i is kept in the place of slot `kept[i]`. Raises HRMEdgeError if they cannot be had.
    """
    layouts = [
        _layout(value, rows, max_context, kept)
        for value in session.get_inputs()
        if value.name.startswith(PAST)
    ]
    device = providers.device(provider)
    try:
        return HostBuffers(layouts) if device == "cpu" else DeviceBuffers(layouts, device)
    except Exception as error:  # onnxruntime's exceptions share no public base
        size = sum(layout.size for layout in _places(layouts)) / 2**30
        of = f"{max_context} tokens" if rows == 1 else f"{rows} rows of {max_context} tokens"
        raise HRMEdgeError(
            f"a KV cache for {of} takes {size:.1f} GiB, more than can be had "
            f"({str(error).splitlines()[0]}); use a smaller max_context"
        ) from None


def _layout(value: ort.NodeArg, rows: int, max_context: int, kept: Sequence[int]) -> Layout:
    _, heads, _, width = value.shape
    name, shape = value.name.removeprefix(PAST), (rows, heads, max_context, width)
    slot, _, part = name.partition(".")
    return Layout(name, f"{kept[int(slot)]}.{part}", ort_dtype(value.type), shape)


def _places(layouts: Sequence[Layout]) -> list[Layout]:
    """One layout for each buffer that there is, in the order of the slots that keep theirs."""
    return [layout for layout in layouts if layout.name == layout.place]


class HostBuffers:
    """One anonymous mapping, whose pages the system commits when they are first written."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts, self._places = layouts, _places(layouts)
        memory, start = _mapping(sum(layout.size for layout in self._places)), 0
        self._buffers: dict[str, np.ndarray] = {}
        for layout in self._places:
            flat = np.frombuffer(memory, np.uint8, layout.size, start)
            self._buffers[layout.name] = flat.view(layout.dtype).reshape(layout.shape)
            start += layout.size

    def bind(self, binding: ort.IOBinding, row: int, count: int) -> None:
        """As KVBuffers says."""
        for layout in self._layouts:
            part = layout.part(self._buffers[layout.place].ctypes.data, row, count)
            binding.bind_input(PAST + layout.name, "cpu", 0, *part)
            binding.bind_output(PRESENT + layout.name, "cpu", 0, *part)

    def read(self, row: int, tokens: int) -> np.ndarray:
        """As KVBuffers says."""
        return _joined([array[row, :, :tokens] for array in self._buffers.values()])

    def write(self, row: int, cache: np.ndarray, tokens: int) -> None:
        """As KVBuffers says."""
        parts = _parts(cache, self._places, tokens)
        for array, part in zip(self._buffers.values(), parts, strict=True):
            array[row, :, :tokens] = part

    def swap(self, one: int, other: int, tokens: int) -> None:
        """As KVBuffers says."""
        for array in self._buffers.values():
            array[[one, other], :, :tokens] = array[[other, one], :, :tokens]


def _mapping(size: int) -> mmap.mmap:
    """Zeroed bytes that belong to this process alone and are committed page by page.

    mmap's default, a shared mapping, is no anonymous memory to the system; a huge page would commit
    what was never written.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


class DeviceBuffers:
    """OrtValues in the memory of a device, where they stay from call to call."""

    def __init__(self, layouts: Sequence[Layout], device: str) -> None:
        self._layouts, self._places, self._device = layouts, _places(layouts), device
        self._values = {
            layout.name: ort.OrtValue.ortvalue_from_shape_and_type(
                layout.shape, layout.dtype, device, 0
            )
            for layout in self._places
        }

    def bind(self, binding: ort.IOBinding, row: int, count: int) -> None:
        """As KVBuffers says."""
        for layout in self._layouts:
            part = layout.part(self._values[layout.place].data_ptr(), row, count)
            binding.bind_input(PAST + layout.name, self._device, 0, *part)
            binding.bind_output(PRESENT + layout.name, self._device, 0, *part)

    def read(self, row: int, tokens: int) -> np.ndarray:
        """As KVBuffers says."""
        return _joined([value.numpy()[row, :, :tokens] for value in self._values.values()])

    def write(self, row: int, cache: np.ndarray, tokens: int) -> None:
        """As KVBuffers says."""
        parts = _parts(cache, self._places, tokens)
        for value, part in zip(self._values.values(), parts, strict=True):
            whole = value.numpy().copy()
            whole[row, :, :tokens] = part
            value.update_inplace(whole)

    def swap(self, one: int, other: int, tokens: int) -> None:
        """As KVBuffers says."""
        for value in self._values.values():
            whole = value.numpy().copy()
            whole[[one, other], :, :tokens] = whole[[other, one], :, :tokens]
            value.update_inplace(whole)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The bytes of all `parts`, [bytes]."""
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def _parts(cache: np.ndarray, layouts: Sequence[Layout], tokens: int) -> list[np.ndarray]:
    """The buffers' first `tokens`, [heads, tokens, width] each, out of what `_joined` gave.

    Raises ValueError if `cache` has another size.
    """
    sizes = [layout.row_size // layout.shape[2] * tokens for layout in layouts]
    if cache.size != sum(sizes):
        raise ValueError(f"a cache of {cache.size} bytes, expected {sum(sizes)}")
    flat = np.split(cache, np.cumsum(sizes)[:-1])
    return [
        part.view(layout.dtype).reshape(layout.shape[1], tokens, layout.shape[3])
        for part, layout in zip(flat, layouts, strict=True)
    ]
