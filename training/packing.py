"""Rows: several samples side by side in a fixed number of tokens, and the mask between them.

Samples come in an endless shuffled order. A window of it is packed at once, best-fit decreasing:
the longest sample first, each into the fullest row that still takes it (LPT multipack, the
reference trainer's, levels the rows of one step instead; a window leaves fewer gaps). Where a run
stands in the stream is two integers, whatever the number of processes.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .data import Samples

IGNORE = -100
WINDOW = 4096  # samples packed together


@dataclass(frozen=True)
class Rows:
    """Packed rows, each array [B, S] int64. Sample k of a row has segment k; padding has -1."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    prefix: Tensor  # bool: token of a prompt
    targets: Tensor  # next token where the loss counts, else IGNORE

    @property
    def samples(self) -> int:
        """How many there are."""
        return int((self.segments.amax(1) + 1).sum())

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> "Rows":
        return Rows(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def select(self) -> Tensor:
        """Flat indices [n] of the positions that have a target."""
        return (self.targets.flatten() != IGNORE).nonzero().squeeze(1)

    @property
    def used(self) -> int:
        """Token slots that hold a sample's token."""
        return int((self.segments >= 0).sum())


class Stream:
    """Packed rows without end: the same rows for a seed, from any (window, row) on.

    Every sample occurs once an epoch. Rows are shuffled within a window, since packing sorts.
    """

    def __init__(self, slots: np.ndarray, capacity: int, seed: int, window: int, row: int) -> None:
        self.slots, self.capacity, self.seed = slots, capacity, seed
        self.window, self.row = window, row
        self._bins: list[list[int]] = []
        self._packed = -1  # the window that _bins holds

    def take(self, rows: int) -> list[list[int]]:
        """The next `rows` rows: indices of the samples in each."""
        taken: list[list[int]] = []
        while len(taken) < rows:
            self._pack()
            found = self._bins[self.row : self.row + rows - len(taken)]
            self.row += len(found)
            taken += found
            if self.row == len(self._bins):
                self.window, self.row = self.window + 1, 0
        return taken

    def _pack(self) -> None:
        if self._packed == self.window:
            return
        samples = self._samples()
        bins = best_fit(self.slots[samples].tolist(), self.capacity)
        assert bins is not None, f"a sample exceeds the row of {self.capacity} tokens"
        order = np.random.default_rng((self.seed, self.window, 1)).permutation(len(bins))
        self._bins = [samples[bins[i]].tolist() for i in order]
        self._packed = self.window

    def _samples(self) -> np.ndarray:
        """Indices of the window's samples, across the end of an epoch if it lies within."""
        count = len(self.slots)
        places = np.arange(self.window * WINDOW, (self.window + 1) * WINDOW)
        epochs = places // count
        orders = {
            int(e): np.random.default_rng((self.seed, int(e))).permutation(count)
            for e in np.unique(epochs)
        }
        return np.concatenate([o[places[epochs == e] % count] for e, o in orders.items()])


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]] | None:
    """Place every item into rows of `capacity`, best-fit decreasing: indices of the items per row.

    None if an item exceeds the capacity.
    """
    free: list[tuple[int, int]] = []  # (free space, row), sorted
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[item], -1))
        if at < len(free):
            space, row = free.pop(at)
        else:
            space, row = capacity, len(bins)
            bins.append([])
        if space < lengths[item]:
            return None
        bins[row].append(item)
        bisect.insort(free, (space - lengths[item], row))
    return bins


def build_rows(
    samples: Samples, bins: list[list[int]], capacity: int, loss_on: str = "response"
) -> Rows:
    """Lay the samples out. The last prompt token predicts the first response token."""
    shape = (len(bins), capacity)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, targets = np.full(shape, -1, np.int64), np.full(shape, IGNORE, np.int64)
    prefix = np.zeros(shape, bool)
    for r, row in enumerate(bins):
        at = 0
        for k, sample in enumerate(row):
            entry = samples.table[sample]
            start, prompt, length = int(entry["start"]), int(entry["prompt"]), int(entry["length"])
            tokens = samples.tokens[start : start + length]
            end, learned = at + length - 1, at + (prompt - 1 if loss_on == "response" else 0)
            ids[r, at:end] = tokens[:-1]
            positions[r, at:end] = np.arange(length - 1)
            segments[r, at:end] = k
            prefix[r, at : at + prompt] = True
            targets[r, learned:end] = tokens[1 + learned - at :]
            at = end
    return Rows(*map(torch.from_numpy, (ids, positions, segments, prefix, targets)))


def dense_mask(rows: Rows, prefix_lm: bool = True) -> Tensor:
    """bool [B, 1, S, S]: within a sample causal, and to every token of its prompt if `prefix_lm`.

    Padding attends to padding before it, so that no softmax is over nothing.
    """
    size = rows.segments.shape[1]
    same = rows.segments[:, :, None] == rows.segments[:, None, :]
    causal = torch.ones(size, size, dtype=torch.bool, device=rows.ids.device).tril()
    seen = causal | rows.prefix[:, None, :] if prefix_lm else causal
    return (same & seen)[:, None]


def block_mask(rows: Rows, prefix_lm: bool = True) -> BlockMask:
    """The same rule for flex_attention (CUDA), which skips blocks that nothing may see."""
    batch, size = rows.segments.shape
    segments, prefix = rows.segments, rows.prefix

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) | prefix[b, k] if prefix_lm else k <= q
        return (segments[b, q] == segments[b, k]) & seen

    return create_block_mask(rule, batch, None, size, size, device=str(segments.device))


def attention_mask(rows: Rows, prefix_lm: bool = True) -> Tensor | BlockMask:
    """A dense mask for SDPA on the CPU, a block mask for flex_attention on an accelerator."""
    on_cpu = rows.ids.device.type == "cpu"
    return dense_mask(rows, prefix_lm) if on_cpu else block_mask(rows, prefix_lm)
