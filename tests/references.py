"""Random architectures, and what their exports are compared with in float32."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import HrmTextForCausalLM

from hrm_edge import names
from hrm_edge.checkpoint import Checkpoint
from hrm_edge.export.reference.forward import rms_norm, rotate_half
from hrm_edge.model import HRMText
from hrm_edge.numerics import rotary
from hrm_edge.samples import Sample
from tiny_models import VOCAB, Shape


@dataclass
class Reference:
    """transformers in float32, asked for the logits of a sequence's last position."""

    model: HrmTextForCausalLM

    @torch.no_grad()
    def logits(self, ids: list[int], prefix: int, last: int = 1) -> np.ndarray:
        types = torch.tensor([[1] * prefix + [0] * (len(ids) - prefix)])
        out = self.model(torch.tensor([ids]), token_type_ids=types, use_cache=False)
        return out.logits[0, -last:].numpy()


def random_shapes(
    count: int, head_dims: Sequence[int], intermediates: Sequence[int]
) -> list[Shape]:
    """`count` architectures, in which every choice occurs."""
    pick = random.Random(5)
    return [
        Shape(
            layers=pick.choice([1, 2, 3]),
            heads=pick.choice([1, 2, 3]),
            head_dim=head_dims[i % len(head_dims)],
            intermediate=pick.choice(intermediates),
            H=(1, 2, 3)[(i // 2) % 3],
            L=(1, 2, 3, 4)[i % 4],
            tied=i % 5 == 4,
            layout=("hub", "split")[i % 2],
            dtype=(torch.float32, torch.bfloat16)[(i // 3) % 2],
            seed=i,
        )
        for i in range(count)
    ]


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(14, VOCAB - 14, length).tolist()


def random_samples(count: int) -> list[Sample]:
    """Samples of random tokens, some of equal length."""
    pick = np.random.default_rng(0)
    lengths = [(3 + i % 4, 1 + i % 3) for i in range(count)]
    ids = [pick.integers(14, VOCAB - 14, p + a).tolist() for p, a in lengths]
    return [Sample(tuple(x[:p]), tuple(x[p:]), "t") for x, (p, _) in zip(ids, lengths, strict=True)]


def load_reference(path: Path) -> Reference:
    return Reference(HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval())


def load_ours(path: Path) -> HRMText:
    checkpoint = Checkpoint.open(path)
    model = HRMText(checkpoint.config).eval()
    state = {n: torch.from_numpy(checkpoint.float32(n)) for n in checkpoint.names()}
    model.load_state_dict(state, strict=True)
    return model


def relative(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest difference in units of the largest logit."""
    return float(np.abs(expected - got).max() / np.abs(expected).max())


class Recurrence:
    """The model in numpy, a call at a time: some of its passes, over caches by the slot kept."""

    def __init__(self, checkpoint: Checkpoint, kv_share: str = "none") -> None:
        self.config, self.read = checkpoint.config, checkpoint.float32
        self.kept = self.config.shared_slots(kv_share)
        self.caches: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.length = 0

    def call(self, ids: Sequence[int], plan: Sequence[bool] | None = None) -> np.ndarray:
        """Logits [len(ids), V] after the passes of `plan` (all); the first call is the prefix."""
        c, tables = self.config, rotary(self.config, self.length + len(ids))
        self.cos, self.sin = (x[self.length :, None] for x in tables)
        z_h = self.read(names.EMBEDDING)[list(ids)] * np.float32(c.embedding_scale)
        z_l = np.broadcast_to(self.read(names.Z_L_INIT), z_h.shape)
        for turn, stack in enumerate(c.passes):
            if plan is not None and not plan[turn]:
                continue
            if stack == "L":
                z_l = self._pass(stack, turn, z_l + z_h)
            else:
                z_h = self._pass(stack, turn, z_h + z_l)
        self.length += len(ids)
        return z_h @ self.read(names.HEAD).T

    def _pass(self, stack: str, turn: int, x: np.ndarray) -> np.ndarray:
        c = self.config

        def weight(part: str) -> np.ndarray:
            return self.read(names.linear(stack, layer, part)).T

        for layer in range(c.layers_per_stack):
            gate, *qkv = np.split(rms_norm(x, c.rms_norm_eps) @ weight(names.GQKV), 4, axis=-1)
            q, k, v = (part.reshape(len(x), -1, c.head_dim) for part in qkv)
            q, k = (rotate_half(part, self.cos, self.sin) for part in (q, k))
            mixed = self._attend(self.kept[turn * c.layers_per_stack + layer], q, k, v)
            x = x + (mixed / (1 + np.exp(-gate))) @ weight(names.OUT)
            gate, up = np.split(rms_norm(x, c.rms_norm_eps) @ weight(names.GATE_UP), 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(names.DOWN)
        return rms_norm(x, c.rms_norm_eps)

    def _attend(self, slot: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        past = self.caches.get(slot, (k[:0], v[:0]))
        keys, values = (
            np.concatenate([old[: self.length], new]) for old, new in zip(past, (k, v), strict=True)
        )
        self.caches[slot] = (keys, values)
        scores = np.einsum("qhd,khd->hqk", q, keys) * self.config.head_dim**-0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", shares, values).reshape(len(q), -1)
