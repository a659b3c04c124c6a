"""Random tiny HRM-Text models made by transformers, and a tokenizer to go with them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import HrmTextConfig, HrmTextForCausalLM

from hrm_edge.prompt import SPECIAL_TOKENS

VOCAB = 288


@dataclass(frozen=True)
class Shape:
    """A tiny architecture and the way its checkpoint is written."""

    layers: int = 1
    heads: int = 2
    head_dim: int = 32
    intermediate: int = 96
    H: int = 2
    L: int = 2
    tied: bool = False
    layout: str = "hub"  # or split, as transformers keeps tensors in memory
    dtype: torch.dtype = torch.float32
    seed: int = 0


def random_model(shape: Shape) -> HrmTextForCausalLM:
    """A transformers model with random weights, z_L_init too, at a scale that keeps signals up."""
    hidden = shape.heads * shape.head_dim
    config = HrmTextConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        head_dim=shape.head_dim,
        H_cycles=shape.H,
        L_cycles=shape.L,
        max_position_embeddings=256,
        initializer_range=hidden**-0.5,
        pad_token_id=5,
        bos_token_id=6,
        eos_token_id=11,
        tie_word_embeddings=shape.tied,
    )
    generator = torch.Generator().manual_seed(shape.seed)
    model = HrmTextForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer without merges whose special tokens have the published ids."""
    special = {i: f"<|special_{i}|>" for i in range(14)} | {i: t for t, i in SPECIAL_TOKENS.items()}
    names = [special[i] for i in range(14)] + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.add_special_tokens([AddedToken(special[i], special=True) for i in range(14)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|box_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(directory: Path, shape: Shape) -> Path:
    """Save `random_model(shape)` as a Hugging Face directory in the shape's layout and dtype."""
    model = random_model(shape)
    model.type(shape.dtype)
    model.save_pretrained(directory)
    if shape.layout == "split":
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        if shape.tied:
            state.pop("lm_head.weight")
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(directory)
    return directory
