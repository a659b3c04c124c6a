"""The model in numpy, layer by layer: what a quantized model is measured against and calibrated on.

Needs neither torch nor the whole model in memory: weights come by name, one at a time. All samples
run side by side as rows [T, D], and so do several variants of the model (other weights, inputs,
cache), for which each original weight is read once. Only attention knows where a sample begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hrm_edge.config import HRMTextConfig
from hrm_edge.names import DOWN, EMBEDDING, GATE_UP, GQKV, HEAD, OUT, Z_L_INIT, block
from hrm_edge.numerics import rotary
from hrm_edge.samples import Sample

Read = Callable[[str], np.ndarray]  # a tensor's hub name -> its float32 values
States = list[np.ndarray]  # [T, D] for each variant


class Variant:
    """One way to run the model; this one changes nothing. `turn` counts passes from 0."""

    def weight(self, name: str, turn: int) -> np.ndarray | None:
        """The weight [N, K] to use for `name`, None for the original."""
        return None

    def inputs(self, name: str, turn: int, x: np.ndarray) -> np.ndarray:
        """What the linear `name` reads instead of x [T, K]."""
        return x

    def cache(
        self, name: str, turn: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What attention reads instead of k and v [T, heads, head_dim]; `name` made them.

        Within a prefix it reads k and v as they are.
        """
        return k, v


class Watch(Protocol):
    """Sees the residuals [T, D] of every variant after each layer of each pass."""

    def __call__(self, turn: int, layer: int, residuals: States) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Samples as rows. `groups` are samples of equal length: their rows [n, S] and masks [n, S, S].

    `scored` are the rows that predict the answers' tokens, `targets`, in the samples' order.
    `prefix` says of each row whether it belongs to a prompt, which a causal model has as well.
    """

    ids: np.ndarray  # [T]
    positions: np.ndarray  # [T]
    prefix: np.ndarray  # bool [T]
    groups: tuple[tuple[np.ndarray, np.ndarray], ...]
    scored: np.ndarray
    targets: np.ndarray
    answers: tuple[int, ...]  # how many targets each sample has

    @classmethod
    def of(cls, samples: Sequence[Sample], prefix_lm: bool = True) -> "Batch":
        lengths = np.array([len(s.inputs) for s in samples])
        starts = np.cumsum(lengths) - lengths
        prompts = np.array([len(s.prompt) for s in samples])
        groups = []
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            rows = starts[members, None] + np.arange(length)
            inside = np.arange(length) < prompts[members, None]
            both = inside[:, :, None] & inside[:, None, :] & prefix_lm
            groups.append((rows, both | np.tri(length, dtype=bool)))
        scored = [
            np.arange(start + len(s.prompt) - 1, start + len(s.inputs))
            for s, start in zip(samples, starts, strict=True)
        ]
        return cls(
            ids=np.concatenate([s.inputs for s in samples]),
            positions=np.concatenate([np.arange(n) for n in lengths]),
            prefix=np.concatenate(
                [np.arange(n) < p for n, p in zip(lengths, prompts, strict=True)]
            ),
            groups=tuple(groups),
            scored=np.concatenate(scored),
            targets=np.concatenate([s.answer for s in samples]),
            answers=tuple(len(s.answer) for s in samples),
        )


def forward(
    config: HRMTextConfig,
    read: Read,
    batch: Batch,
    variants: Sequence[Variant],
    watch: Watch | None = None,
) -> States:
    """z_H [T, D] after the last pass, for each variant; `project` turns rows of it into logits."""
    run = _Run(config, read, batch, variants, watch)
    z_h = run.embed()
    start = read(Z_L_INIT)
    z_l = [np.broadcast_to(start, z.shape) for z in z_h]
    for turn, stack in enumerate(config.passes):
        if stack == "L":
            z_l = run.stack(stack, turn, z_l, z_h)
        else:
            z_h = run.stack(stack, turn, z_h, z_l)
    return z_h


def project(
    config: HRMTextConfig, read: Read, states: States, variants: Sequence[Variant]
) -> list[np.ndarray]:
    """Logits [n, V] of the rows [n, D] of each variant."""
    name, last = EMBEDDING if config.tie_word_embeddings else HEAD, len(config.passes)
    logits: list[np.ndarray] = []
    original: np.ndarray | None = None
    for variant, x in zip(variants, states, strict=True):
        weight = variant.weight(HEAD, last)
        if weight is None:
            original = read(name) if original is None else original
            weight = original
        logits.append(variant.inputs(HEAD, last, x) @ weight.T)
    return logits


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) along the last axis, without a weight."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))


def rotate_half(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """RoPE in the half-split form; x [T, heads, head_dim], cos and sin [T, 1, head_dim / 2]."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class _Run:
    """One forward: what all its steps share."""

    def __init__(
        self,
        config: HRMTextConfig,
        read: Read,
        batch: Batch,
        variants: Sequence[Variant],
        watch: Watch | None,
    ) -> None:
        self.config, self.read, self.batch = config, read, batch
        self.variants, self.watch = variants, watch
        tables = rotary(config, int(batch.positions.max()) + 1)  # [length, head_dim / 2]
        self.cos, self.sin = (x[batch.positions, None] for x in tables)  # [T, 1, head_dim / 2]

    def embed(self) -> States:
        """Scaled token embeddings for each variant."""
        scale, original, states = np.float32(self.config.embedding_scale), None, []
        for variant in self.variants:
            own = variant.weight(EMBEDDING, 0)
            if own is not None:
                states.append(own[self.batch.ids] * scale)
                continue
            if original is None:
                original = self.read(EMBEDDING)[self.batch.ids] * scale
            states.append(original)
        return states

    def stack(self, stack: str, turn: int, states: States, injected: States) -> States:
        """One pass over state + injected."""
        eps = self.config.rms_norm_eps
        residuals = [x + skip for x, skip in zip(states, injected, strict=True)]
        for layer in range(self.config.layers_per_stack):
            name = block(stack, layer)
            normed = [rms_norm(x, eps) for x in residuals]
            deltas = self._attention(name, turn, normed)
            residuals = [x + d for x, d in zip(residuals, deltas, strict=True)]
            normed = [rms_norm(x, eps) for x in residuals]
            deltas = self._mlp(name, turn, normed)
            residuals = [x + d for x, d in zip(residuals, deltas, strict=True)]
            if self.watch is not None:
                self.watch(turn, layer, residuals)
        return [rms_norm(x, eps) for x in residuals]

    def _attention(self, name: str, turn: int, xs: States) -> States:
        projection = f"{name}{GQKV}.weight"
        gated = []
        for variant, gqkv in zip(self.variants, self._linear(projection, turn, xs), strict=True):
            gate, q, k, v = np.split(gqkv, 4, axis=-1)
            q, k, v = (part.reshape(len(part), -1, self.config.head_dim) for part in (q, k, v))
            q, k = (rotate_half(part, self.cos, self.sin) for part in (q, k))
            kept = variant.cache(projection, turn, k, v)
            mixed = self._mix(q, *kept)
            if kept[0] is not k:  # the prefix attends before the cache rounds
                mixed = np.where(self.batch.prefix[:, None], self._mix(q, k, v), mixed)
            gated.append(_sigmoid(gate) * mixed)
        return self._linear(f"{name}{OUT}.weight", turn, gated)

    def _mix(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Softmax attention within each sample; q, k, v [T, heads, head_dim] -> [T, A]."""
        out, scale = np.empty_like(q), np.float32(self.config.head_dim**-0.5)
        for rows, mask in self.batch.groups:
            queries, keys, values = (x[rows].swapaxes(1, 2) for x in (q, k, v))  # [n, heads, S, d]
            scores = queries @ keys.swapaxes(2, 3) * scale
            scores = np.where(mask[:, None], scores, np.float32(-np.inf))
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            out[rows] = (scores @ values).swapaxes(1, 2)
        return out.reshape(len(out), -1)

    def _mlp(self, name: str, turn: int, xs: States) -> States:
        hidden = []
        for both in self._linear(f"{name}{GATE_UP}.weight", turn, xs):
            gate, up = np.split(both, 2, axis=-1)
            hidden.append(gate * _sigmoid(gate) * up)
        return self._linear(f"{name}{DOWN}.weight", turn, hidden)

    def _linear(self, name: str, turn: int, xs: States) -> States:
        original: np.ndarray | None = None
        outputs = []
        for variant, x in zip(self.variants, xs, strict=True):
            weight = variant.weight(name, turn)
            if weight is None:
                original = self.read(name) if original is None else original
                weight = original
            outputs.append(variant.inputs(name, turn, x) @ weight.T)
        return outputs


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))
