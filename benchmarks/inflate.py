"""Embeds a small trained model, exactly, in the shape of a large one.

    python -m benchmarks.inflate hrm_edge/data/hrm_tiny -o tiny-xl --size XL

The result computes the small model's function with the large model's arithmetic: speed, memory,
quantization and the acceptance of drafts can be looked at together at 1.18 billion parameters. It
knows no more than the small model, and what it knows sits in a few thousandths of its weights, so
it says nothing of how well a model trained at that size survives quantization.

How (c = sqrt(D / D0), D0 the small hidden size):
- Hidden channels are padded with zeros. The mean square over D is D0 / D of the one over D0, so
  every norm comes out c times larger. Let the whole residual stream be c times larger: what writes
  to it (embedding scale, z_L_init, o_proj, down_proj) is multiplied by c, what reads a norm (gqkv,
  gate_up, head) by 1 / c, and eps stays what it was. Columns that meet the padding are noise as
  large as the row's own weights: they multiply zeros, and the row keeps the norm from which the
  scales of a quantized KV cache are drawn.
- A head is spread over the larger head_dim so that each rotary pair keeps its frequency; q makes up
  for the softmax scale. Further heads are zeros.
- Further layers add nothing to the stream: their o_proj and down_proj are zeros, the rest random.
- Further tokens are copies of the padding token, which is never an answer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from benchmarks.make_checkpoint import SIZES, VOCAB
from benchmarks.make_checkpoint import config as sized
from hrm_edge.checkpoint import Checkpoint, write_checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError

FITTING = ("hidden_size", "intermediate_size", "layers_per_stack", "num_attention_heads")


def inflate(small: Checkpoint, out: Path, shape: HRMTextConfig, force: bool = False) -> Path:
    """Write a float32 checkpoint at `out` with the widths of `shape` and the function of `small`.

    Raises HRMEdgeError naming the dimension in which `shape` is smaller than `small`.
    """
    for name in (*FITTING, "head_dim", "vocab_size"):
        most, least = getattr(shape, name), getattr(small.config, name)
        if most < least:
            raise HRMEdgeError(f"{name} is {most}, expected at least {least}, that of {small.path}")
    plan = _Plan(small, target_config(small.config, shape))
    return write_checkpoint(out, plan.large, plan.tensors(), "float32", small.path, force)


def target_config(small: HRMTextConfig, shape: HRMTextConfig) -> HRMTextConfig:
    """`shape`'s widths with `small`'s cycles and constants, scaled where the padding demands it."""
    stride = shape.head_dim // small.head_dim
    return replace(
        shape,
        H_cycles=small.H_cycles,
        L_cycles=small.L_cycles,
        rms_norm_eps=small.rms_norm_eps,
        embedding_scale=small.embedding_scale * math.sqrt(shape.hidden_size / small.hidden_size),
        rope_theta=small.rope_theta ** (shape.head_dim / (small.head_dim * stride)),
        tie_word_embeddings=False,
        prefix_lm=small.prefix_lm,
        pad_token_id=small.pad_token_id,
        bos_token_id=small.bos_token_id,
        eos_token_ids=small.eos_token_ids,
    )


@dataclass(frozen=True)
class _Plan:
    small: Checkpoint
    large: HRMTextConfig

    @property
    def growth(self) -> float:
        """c of the module's docstring."""
        return math.sqrt(self.large.hidden_size / self.small.config.hidden_size)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor of the large model, one at a time."""
        rng = np.random.default_rng(0)
        ours = self.small.config.tensor_shapes() | {"lm_head.weight": ()}
        for name, shape in self.large.tensor_shapes().items():
            if name in ours:
                yield name, self._embedded(name, shape)
            elif "o_proj" in name or "down_proj" in name:
                yield name, np.zeros(shape, np.float32)
            else:
                random = rng.standard_normal(shape, np.float32)
                yield name, random * np.float32(shape[1] ** -0.5)

    def _embedded(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tied = name == "lm_head.weight" and self.small.config.tie_word_embeddings
        weight = self.small.float32("model.embed_tokens.weight" if tied else name)
        if name == "model.z_L_init":
            return _padded(weight * self.growth, shape)
        if name == "model.embed_tokens.weight":
            return self._table(weight, shape)
        if name == "lm_head.weight":
            return self._filled(self._table(weight / self.growth, shape))
        if "gqkv" in name:
            return self._gqkv(weight / self.growth, shape)
        if "o_proj" in name:
            return self._heads(weight.T * self.growth, shape[::-1]).T
        if "gate_up" in name:
            halves = weight.reshape(2, -1, weight.shape[1]) / self.growth
            return self._filled(_padded(halves, (2, shape[0] // 2, shape[1])).reshape(shape))
        return _padded(weight * self.growth, shape)

    def _table(self, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        table = _padded(weight, shape)
        table[len(weight) :] = table[self.small.config.pad_token_id or 0]
        return table

    def _gqkv(self, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        gate, q, k, v = np.split(weight, 4)
        q = q * math.sqrt(self.large.head_dim / self.small.config.head_dim)
        part = (shape[0] // 4, shape[1])
        return self._filled(np.concatenate([self._heads(w, part) for w in (gate, q, k, v)]))

    def _filled(self, weight: np.ndarray) -> np.ndarray:
        """`weight` [rows, D] with noise in the columns past D0, as large as each row's own part."""
        few = self.small.config.hidden_size
        spread = np.sqrt(np.square(weight[:, :few]).mean(axis=1, keepdims=True))
        shape = (len(weight), weight.shape[1] - few)
        weight[:, few:] = np.random.default_rng(1).standard_normal(shape, np.float32) * spread
        return weight

    def _heads(self, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Rows [heads0 * head_dim0, D0] spread over [heads * head_dim, D]."""
        few, wide = self.small.config.head_dim, self.large.head_dim
        pairs = np.arange(few // 2) * (wide // few)
        where = np.concatenate([pairs, pairs + wide // 2])
        heads, columns = len(weight) // few, weight.shape[1]
        spread = np.zeros((self.large.num_attention_heads, wide, shape[1]), np.float32)
        spread[:heads, where, :columns] = weight.reshape(heads, few, columns)
        return spread.reshape(shape)


def _padded(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`weight` in the first corner of zeros of `shape`."""
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(n) for n in weight.shape)] = weight
    return padded


@click.command()
@click.argument("small", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--size", type=click.Choice(list(SIZES)), default="XL", show_default=True)
@click.option("--vocab", default=VOCAB, show_default=True, help="Tokens of the large model.")
@click.option("--force", is_flag=True, help="Replace OUT.")
def main(small: Path, out: Path, size: str, vocab: int, force: bool) -> None:
    """Write the checkpoint SMALL in the shape of SIZE into the new directory OUT."""
    try:
        inflate(Checkpoint.open(small), out, sized(size, vocab), force)
    except HRMEdgeError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
