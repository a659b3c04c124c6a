"""The tokenizer of a checkpoint in GGUF's terms, or one clear line why llama.cpp cannot have it.

llama.cpp knows byte-level BPE and, by name, how to split text before merging. A tokenizer.json is
translated only where its split is one of those names exactly, so that token ids stay the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from hrm_edge.chat_template import chat_template_source
from hrm_edge.config import HRMTextConfig, read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import TOKENIZER
from hrm_edge.prompt import CONDITIONS, PROMPT_END, PROMPT_START, QWEN2_SPLIT

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")  # as Qwen2, but up to three digits
DIGIT = r"\p{N}"


@dataclass(frozen=True)
class PreTokenizer:
    """A split that llama.cpp knows: regular expressions applied one after the other."""

    name: str  # tokenizer.ggml.pre
    splits: tuple[str, ...]
    ignore_merges: bool = False  # a word that is itself a token is taken whole


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (GPT2,)),
    PreTokenizer("smollm", (DIGIT, GPT2)),
    PreTokenizer("qwen2", (QWEN2_SPLIT,)),
    PreTokenizer("dbrx", (LLAMA3,)),
    PreTokenizer("llama-bpe", (LLAMA3,), ignore_merges=True),
)
# The prompt format of the model itself, for tools that ask for a chat template: one question,
# answered directly. Without it they would make up roles that the model has never seen.
PROMPT_TEMPLATE = (
    "{{- '" + PROMPT_START + CONDITIONS["direct"] + "' -}}"
    "{{- messages[-1]['content'] | trim -}}"
    "{{- '" + PROMPT_END + "' -}}"
)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF


@dataclass(frozen=True)
class GGUFTokenizer:
    """What `tokenizer.ggml.*` holds."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    chat_template: str

    @classmethod
    def of(cls, directory: Path, config: HRMTextConfig) -> "GGUFTokenizer":
        """Translate `directory`/tokenizer.json, padded to the model's vocabulary.

        Raises HRMEdgeError naming the part that llama.cpp would do differently.
        """
        path = directory / TOKENIZER
        if not path.is_file():
            raise HRMEdgeError(f"{path}: missing; a GGUF file carries its tokenizer inside")
        raw = read_json_object(path)
        _check_supported(raw, path)
        tokens, types = _vocabulary(raw, config.vocab_size, path)
        template = chat_template_source(directory)
        return cls(
            pre=_pre_tokenizer(raw, path),
            tokens=tokens,
            types=types,
            merges=tuple(m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]),
            chat_template=PROMPT_TEMPLATE if template is None else template[1],
        )

    def write(self, directory: Path, config: HRMTextConfig) -> None:
        """The way back: tokenizer.json, tokenizer_config.json and generation_config.json."""
        self._tokenizer().save(str(directory / TOKENIZER))
        ids = {
            "bos": config.bos_token_id,
            "eos": next(iter(config.eos_token_ids), None),
            "pad": config.pad_token_id,
        }
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= {f"{k}_token": self.tokens[i] for k, i in ids.items() if i is not None}
        if self.chat_template != PROMPT_TEMPLATE:
            settings["chat_template"] = self.chat_template
        generation = {f"{k}_token_id": i for k, i in ids.items() if i is not None}
        for name, raw in (("tokenizer", settings), ("generation", generation)):
            (directory / f"{name}_config.json").write_text(json.dumps(raw, indent=2) + "\n")

    def _tokenizer(self) -> Tokenizer:
        pre = next(p for p in PRE_TOKENIZERS if p.name == self.pre)
        used = {t: i for i, t in enumerate(self.tokens) if self.types[i] != UNUSED}
        merges = [tuple(m.split(" ", 1)) for m in self.merges]
        merges = [m for m in merges if "".join(m) in used]  # not the one that stands for none
        tokenizer = Tokenizer(models.BPE(used, merges, ignore_merges=pre.ignore_merges))  # type: ignore[arg-type]
        splits = [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits if s != GPT2]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in pre.splits)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        added = {t: self.types[i] for t, i in used.items()}
        special = [t for t, kind in added.items() if kind == CONTROL]
        plain = [t for t, kind in added.items() if kind == USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in plain])
        return tokenizer


def known_names() -> tuple[str, ...]:
    """The values of tokenizer.ggml.pre that can be translated, either way."""
    return tuple(p.name for p in PRE_TOKENIZERS)


def _check_supported(raw: dict[str, Any], path: Path) -> None:
    model = raw.get("model") or {}
    if model.get("type") != "BPE":
        _refuse(path, f"its model is {model.get('type')!r}, expected byte-level 'BPE'")
    for key in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            _refuse(path, f"model.{key} is {model[key]!r}")
    normalizer = (raw.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp takes text as it comes, which is NFC mostly
        _refuse(path, f"its normalizer is {normalizer!r}")
    for token in raw.get("added_tokens", []):
        odd = [k for k in ("lstrip", "rstrip", "single_word") if token.get(k)]
        if odd:
            _refuse(path, f"its added token {token['content']!r} has {odd[0]}")


def _pre_tokenizer(raw: dict[str, Any], path: Path) -> str:
    splits = _splits(raw.get("pre_tokenizer") or {})
    ignore_merges = bool(raw["model"].get("ignore_merges"))
    for known in PRE_TOKENIZERS:
        if (known.splits, known.ignore_merges) == (splits, ignore_merges):
            return known.name
    names = ", ".join(known_names())
    how = "is not byte-level" if splits is None else f"splits by {' then '.join(splits)}"
    _refuse(path, f"its pre_tokenizer {how} (known are those of {names})")


def _splits(pre: dict[str, Any]) -> tuple[str, ...] | None:
    """The regular expressions of a byte-level pre_tokenizer; None if it is anything else."""
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    splits = [_split(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        splits.append(GPT2)
    return None if None in splits else tuple(s for s in splits if s)


def _split(step: dict[str, Any]) -> str | None:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return DIGIT
    whole = (step.get("behavior"), bool(step.get("invert"))) in (
        ("Isolated", False),
        ("Removed", True),
    )
    return step["pattern"].get("Regex") if step.get("type") == "Split" and whole else None


def _vocabulary(
    raw: dict[str, Any], size: int, path: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    added = {t["content"]: t for t in raw.get("added_tokens", [])}
    listed = raw["model"]["vocab"] | {content: t["id"] for content, t in added.items()}
    highest = max(listed.values(), default=-1)
    if highest >= size:
        raise HRMEdgeError(f"{path}: holds token id {highest}, the model's vocab_size is {size}")
    for token, i in listed.items():
        tokens[i] = token
        special = token in added and added[token].get("special")
        types[i] = CONTROL if special else USER_DEFINED if token in added else NORMAL
    return tuple(tokens), tuple(types)


def _refuse(path: Path, why: str) -> NoReturn:
    raise HRMEdgeError(f"{path}: {why}; llama.cpp would make other token ids of the same text")
