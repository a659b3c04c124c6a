"""Trains a byte-level BPE tokenizer and writes it as a Hugging Face tokenizer directory.

The special tokens sit at the ids that the published models use (hrm_edge.prompt). Digits are single
tokens, so that a number's value does not hide in a merge.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from hrm_edge.prompt import ANSWER_END, PROMPT_START, QWEN2_SPLIT, SPECIAL_TOKENS

SPECIAL_COUNT = max(SPECIAL_TOKENS.values()) + 1
SMALLEST = SPECIAL_COUNT + 256


def special_tokens() -> list[str]:
    """Every special token in the order of its id; ids without a known name are reserved."""
    names = {i: name for name, i in SPECIAL_TOKENS.items()}
    return [names.get(i, f"<|reserved_{i}|>") for i in range(SPECIAL_COUNT)]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens. Raises HRMEdgeError below 256 + specials."""
    if vocab_size < SMALLEST:
        raise HRMEdgeError(
            f"data.vocab_size is {vocab_size}, expected at least {SMALLEST} "
            f"(256 bytes and {SPECIAL_COUNT} special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for name, i in SPECIAL_TOKENS.items():
        assert tokenizer.token_to_id(name) == i, f"{name} is {tokenizer.token_to_id(name)}, not {i}"
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path, context: int) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json into directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / TOKENIZER))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": PROMPT_START,
        "eos_token": ANSWER_END,
        "pad_token": "<|PAD|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    generation = {
        "bos_token_id": SPECIAL_TOKENS[PROMPT_START],
        "eos_token_id": SPECIAL_TOKENS[ANSWER_END],
        "pad_token_id": SPECIAL_TOKENS["<|PAD|>"],
        "do_sample": False,
    }
    (out / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    (out / GENERATION_CONFIG).write_text(json.dumps(generation, indent=2) + "\n")
