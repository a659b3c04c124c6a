"""Random architectures, and what their exports are compared with in float32."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import HrmTextForCausalLM

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.model import HRMText
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
