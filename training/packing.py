"""Rows: several samples side by side in a fixed number of tokens, and the mask between them.

The stream of samples is endless (a new shuffle each epoch) and its state is one integer, so that
resuming costs nothing and does not depend on the number of processes. Rows of a step are filled by
best-fit decreasing: the longest sample first, each into the fullest row that still takes it. Unlike
LPT multipack (the reference trainer's), which levels the rows, this leaves whole gaps at the end.
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


@dataclass(frozen=True)
class Rows:
    """Packed rows, each array [B, S] int64. Sample k of a row has segment k; padding has -1."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    prefix: Tensor  # bool: token of a prompt
    targets: Tensor  # next token where the loss counts, else IGNORE

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
    """The endless, shuffled order of samples. `cursor` counts samples handed out since the start."""

    def __init__(self, count: int, seed: int, cursor: int = 0) -> None:
        self.count, self.seed, self.cursor = count, seed, cursor
        self._orders: dict[int, np.ndarray] = {}

    def peek(self, n: int) -> np.ndarray:
        """Indices of the next n samples, without taking them."""
        places = np.arange(self.cursor, self.cursor + n)
        epochs = places // self.count
        return np.concatenate(
            [self._order(int(e))[places[epochs == e] % self.count] for e in np.unique(epochs)]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return self._orders[epoch]


def best_fit(
    lengths: Sequence[int], capacity: int, rows: int | None = None
) -> list[list[int]] | None:
    """Place every item into rows of `capacity`, best-fit decreasing: indices of the items per row.

    None if `rows` are given and do not suffice; without it, rows are opened as needed.
    """
    free = [(capacity, r) for r in range(rows or 0)]  # sorted by free space
    bins: list[list[int]] = [[] for _ in free]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[item], -1))
        if at == len(free):
            if rows is not None or lengths[item] > capacity:
                return None
            free.append((capacity, len(bins)))
            bins.append([])
        space, row = free.pop(at)
        bins[row].append(item)
        bisect.insort(free, (space - lengths[item], row))
    return bins


def next_bins(stream: Stream, slots: np.ndarray, rows: int, capacity: int) -> list[list[int]]:
    """Take as many samples of the stream as fit into `rows` rows; their indices per row.

    The number is found by bisection, as the reference's multipack does, and samples are taken
    strictly in order: none is ever skipped or seen twice in an epoch.
    """
    guess = max(rows, int(rows * capacity / max(1.0, float(slots.mean())) * 1.25) + 1)
    order = stream.peek(guess)
    lengths = slots[order].tolist()
    fits, best = 1, best_fit(lengths[:1], capacity, rows)
    assert best is not None, f"a sample of {lengths[0]} tokens does not fit a row of {capacity}"
    beyond = int(np.searchsorted(np.cumsum(lengths), rows * capacity, side="right")) + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        bins = best_fit(lengths[:middle], capacity, rows)
        if bins is None:
            beyond = middle
        else:
            fits, best = middle, bins
    stream.cursor += fits
    return [[int(order[i]) for i in row] for row in best]


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
    """The same rule for flex_attention (CUDA), which skips blocks that no query of a row may see."""
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
