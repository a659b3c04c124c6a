"""Logits of the numpy model over batches of samples, its weights kept or streamed by size."""

from collections.abc import Iterator, Sequence

import numpy as np

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.samples import Sample

from .forward import Batch, Read, States, Variant, Watch, forward, project

BATCH_TOKENS = 2048  # rows of one numpy forward
KEEP_BYTES = 1 << 28  # models up to this size in float32 are held in memory, larger ones streamed


def predict(
    config: HRMTextConfig,
    read: Read,
    batch: Batch,
    variants: Sequence[Variant],
    watch: Watch | None = None,
) -> list[np.ndarray]:
    """Logits [n, V] of the batch's scored rows for each variant."""
    states: States = forward(config, read, batch, variants, watch)
    return project(config, read, [z[batch.scored] for z in states], variants)


def reader(checkpoint: Checkpoint) -> Read:
    """Reads tensors by name, and keeps those of a small model."""
    if not is_small(checkpoint.config):
        return checkpoint.float32
    kept = {name: checkpoint.float32(name) for name in checkpoint.names()}
    return kept.__getitem__


def is_small(config: HRMTextConfig) -> bool:
    """Whether all weights are held in memory at once."""
    return 4 * sum(config.parameters.values()) <= KEEP_BYTES


def batches(samples: Sequence[Sample], tokens: int = BATCH_TOKENS) -> Iterator[list[Sample]]:
    """`samples` in order, in lists of at most `tokens` rows (or one sample)."""
    part: list[Sample] = []
    size = 0
    for sample in samples:
        if part and size + len(sample.inputs) > tokens:
            yield part
            part, size = [], 0
        part.append(sample)
        size += len(sample.inputs)
    yield part
