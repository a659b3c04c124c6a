"""Lines in many scripts with the ids that Hugging Face's `tokenizers` gives them.

python checks/tokenizer_cases.py OUT

Writes, for hrm-tiny's tokenizer and for three that are trained here on the same lines with the
splits of well-known models, OUT/NAME/tokenizer.json and OUT/NAME/cases.jsonl. Characters are those
of Unicode 13, which Java 17 and all later ones know.
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TINY = Path(__file__).parents[2] / "hrm_edge" / "data" / "hrm_tiny" / "tokenizer.json"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}",
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "gpt2": None,  # the ByteLevel pre-tokenizer's own
}
BLOCKS = {
    "Latin": (0x41, 0x24F), "IPA": (0x250, 0x2AF), "Greek": (0x370, 0x3FF),
    "Cyrillic": (0x400, 0x52F), "Armenian": (0x531, 0x58F), "Hebrew": (0x591, 0x5F4),
    "Arabic": (0x600, 0x6FF), "Syriac": (0x700, 0x74F), "Thaana": (0x780, 0x7B1),
    "NKo": (0x7C0, 0x7FA), "Devanagari": (0x900, 0x97F), "Bengali": (0x980, 0x9FE),
    "Gurmukhi": (0xA01, 0xA76), "Gujarati": (0xA81, 0xAFF), "Oriya": (0xB01, 0xB77),
    "Tamil": (0xB82, 0xBFA), "Telugu": (0xC00, 0xC7F), "Kannada": (0xC80, 0xCF2),
    "Malayalam": (0xD00, 0xD7F), "Sinhala": (0xD81, 0xDF4), "Thai": (0xE01, 0xE5B),
    "Lao": (0xE81, 0xEDF), "Tibetan": (0xF00, 0xFDA), "Myanmar": (0x1000, 0x109F),
    "Georgian": (0x10A0, 0x10FF), "Hangul Jamo": (0x1100, 0x11FF), "Ethiopic": (0x1200, 0x139F),
    "Cherokee": (0x13A0, 0x13FD), "Canadian": (0x1400, 0x167F), "Khmer": (0x1780, 0x17F9),
    "Mongolian": (0x1800, 0x18AA), "Vietnamese": (0x1E00, 0x1EFF), "Kana": (0x3041, 0x30FF),
    "Bopomofo": (0x3105, 0x312F), "Han": (0x4E00, 0x9FEF), "Yi": (0xA000, 0xA4C6),
    "Hangul": (0xAC00, 0xD7A3), "Javanese": (0xA980, 0xA9DF), "Fullwidth": (0xFF01, 0xFFEE),
    "Gothic": (0x10330, 0x1034A), "Cuneiform": (0x12000, 0x12399), "Han B": (0x20000, 0x2A6DD),
    "Mathematical": (0x1D400, 0x1D7FF), "Emoji": (0x1F300, 0x1F6FC), "Symbols": (0x2190, 0x27BF),
}  # fmt: skip
ODDITIES = [
    *("  ", "\t", "\n", "\r\n", "\n\n ", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028"),
    *("\u200b", "'s", "'LL", "'\u017f", "'Re", "don't", "\u2019s", "...", "?!\n", "--"),
    *("\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "e\u0301", "\u0301", "\ufeff", "\x00", "\x1f"),
    *("\u00ad", "1234567", "3.14", "\u00bd", "\u2167", "\u0663", "<|im_start|>", "<|box_end|>"),
    *("<|im_", "<||>", "A1b2", "x=y+1;", '{"a": []}'),
]  # fmt: skip
NEWER = {0x61D, 0xC3C, 0xC5D, 0xCDD}  # of these blocks, what Unicode 14 added
COUNT = 5000


def make_lines() -> list[str]:
    """COUNT lines: words of a script with what can stand between them."""
    draw = random.Random(8)
    lexicons = {name: _lexicon(draw, *block) for name, block in BLOCKS.items()}
    lines = []
    for number in range(COUNT):
        words = list(lexicons.values())[number % len(lexicons)]
        parts = [draw.choice(words) for _ in range(draw.randint(1, 9))]
        for _ in range(draw.randint(0, 3)):
            parts.insert(draw.randint(0, len(parts)), draw.choice(ODDITIES))
        lines.append(
            draw.choice(("", " ", "\n")).join(parts) if number % 5 == 0 else " ".join(parts)
        )
    return lines


def _lexicon(draw: random.Random, first: int, last: int) -> list[str]:
    """Made-up words of the block's letters, marks, digits and signs."""
    known = [chr(c) for c in range(first, last + 1) if c not in NEWER]
    assigned = [c for c in known if unicodedata.category(c)[0] in "LMNPS"]
    letters = [c for c in assigned if unicodedata.category(c)[0] in "LM"] or assigned
    words = ["".join(draw.choices(letters, k=draw.randint(1, 7))) for _ in range(60)]
    return words + ["".join(draw.choices(assigned, k=draw.randint(1, 4))) for _ in range(20)]


def train(split: str | None, lines: list[str]) -> Tokenizer:
    """A byte-level BPE of 4,000 tokens with hrm-tiny's special ones."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split is not None and "{1,3}" in split))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    steps = [byte_level]
    if split is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|box_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def main(out: Path) -> None:
    """Write all tokenizers and their cases below `out`."""
    lines = make_lines()
    tokenizers = {name: train(split, lines[::2]) for name, split in SPLITS.items()}
    tokenizers["hrm-tiny"] = Tokenizer.from_file(str(TINY))
    for name, tokenizer in tokenizers.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(out / name / "tokenizer.json"))
        with (out / name / "cases.jsonl").open("w", encoding="utf-8") as file:
            for text in lines:
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                decoded = tokenizer.decode(ids, skip_special_tokens=True)
                file.write(json.dumps({"text": text, "ids": ids, "decoded": decoded}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
