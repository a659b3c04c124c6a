"""A random checkpoint in the shape of a published model, to measure speed and memory with.

    python -m benchmarks.make_checkpoint --size XL -o xl

Its weights are LeCun-normal bf16, its tokenizer is a byte-level BPE without merges: it loads
everywhere and says nothing sensible.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hrm_edge.checkpoint import write_checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.prompt import ANSWER_END, SPECIAL_TOKENS

# hidden, intermediate, layers per stack, heads; XL is HRM-Text-1B
SIZES = {
    "tiny": (256, 640, 2, 2),
    "B": (768, 2048, 12, 6),
    "L": (1280, 3584, 14, 10),
    "XL": (1536, 4096, 16, 12),
}
VOCAB = 65536


def config(size: str, vocab: int = VOCAB) -> HRMTextConfig:
    """The configuration of HRM-Text-1B with the widths of `size`."""
    hidden, intermediate, layers, heads = SIZES[size]
    return HRMTextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers_per_stack=layers,
        num_attention_heads=heads,
        head_dim=hidden // heads,
        H_cycles=2,
        L_cycles=3,
        max_position_embeddings=4096,
        embedding_scale=hidden**0.5,
        initializer_range=hidden**-0.5,
        pad_token_id=5,
        bos_token_id=6,
        eos_token_ids=(SPECIAL_TOKENS[ANSWER_END],),
    )


def tensors(config: HRMTextConfig, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Random float32 tensors of `config`; linears have a standard deviation of 1/sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    for name, shape in config.tensor_shapes().items():
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
        yield name, rng.standard_normal(shape, np.float32) * np.float32(scale)


def write_tokenizer(directory: Path, vocab: int) -> None:
    """Write a byte-level tokenizer.json of `vocab` tokens, the special ones in their places."""
    special = {i: f"<|special_{i}|>" for i in range(14)} | {i: t for t, i in SPECIAL_TOKENS.items()}
    names = [special[i] for i in range(14)] + sorted(pre_tokenizers.ByteLevel.alphabet())
    names += [f"<|unused_{i}|>" for i in range(len(names), vocab)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(names[:vocab])}, []))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in names[:14]])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ANSWER_END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def make(shape: HRMTextConfig, out: Path, seed: int = 0) -> Path:
    """Write a random checkpoint of `shape` into the new directory `out`."""
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory), shape.vocab_size)
        return write_checkpoint(out, shape, tensors(shape, seed), tokenizer=Path(directory))


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="XL", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
def main(size: str, out: Path, seed: int) -> None:
    """Write a random checkpoint of SIZE into the new directory OUT."""
    make(config(size), out, seed)


if __name__ == "__main__":
    main()
