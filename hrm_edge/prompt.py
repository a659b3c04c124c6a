"""From a user's text to the tokens of a prefix, and from answer tokens back to text.

HRM-Text has no chat template: a prompt is `<|im_start|>`, condition tokens that say which kind of
answer is wanted, the stripped text, `<|im_end|>`; the answer ends at `<|box_end|>`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers.decoders import DecodeStream

from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import TOKENIZER

# How Qwen2 splits text before merging: words with one leading mark, single digits, runs of marks,
# spaces. Our own tokenizers are trained with it, and llama.cpp knows it by name.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROMPT_START = "<|im_start|>"
PROMPT_END = "<|im_end|>"
ANSWER_END = "<|box_end|>"
CONDITIONS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}
SPECIAL_TOKENS = {  # token -> id, as the published models have them
    "<|PAD|>": 0,
    "<|endoftext|>": 5,
    PROMPT_START: 6,
    PROMPT_END: 7,
    CONDITIONS["direct"]: 8,
    CONDITIONS["cot"]: 9,
    ANSWER_END: 11,
    CONDITIONS["noisy"]: 12,
    CONDITIONS["synth"]: 13,
}


def parse_conditions(text: str) -> tuple[str, ...]:
    """Split "synth,cot" into known conditions, in order; "" means none. Raises HRMEdgeError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in CONDITIONS]
    if unknown:
        known = ", ".join(CONDITIONS)
        raise HRMEdgeError(f"unknown condition {unknown[0]!r}; known are {known}, joined by commas")
    return names


def format_prompt(text: str, conditions: Sequence[str] = ("direct",)) -> str:
    """The prefix for `text`, special tokens spelled out. Raises HRMEdgeError if `text` is blank."""
    body = text.strip()
    if not body:
        raise HRMEdgeError(
            "the prompt is empty; give some text, a file with --file, or - for stdin"
        )
    return PROMPT_START + "".join(CONDITIONS[name] for name in conditions) + body + PROMPT_END


class Tokenizer:
    """The checkpoint's own tokenizer.json. Adds no tokens: the prompt spells its special tokens."""

    def __init__(self, path: Path) -> None:
        """Load `path`, a tokenizer.json or a directory that holds one. Raises HRMEdgeError."""
        path = path / TOKENIZER if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise HRMEdgeError(f"{path}: the tokenizer is missing or cannot be read") from None
        try:
            self._tokenizer = HFTokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise HRMEdgeError(f"{path}: not a tokenizer ({error})") from None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens that it spells become their ids."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def special(self) -> dict[str, int]:
        """Special tokens, which text is never read or written as unless it is asked for."""
        found = self._tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in found.items() if token.special}

    def stream(self, special: bool = False) -> "TextStream":
        """A decoder that is fed one id at a time and yields whole UTF-8 characters.

        `special`: special tokens too, as they are spelled.
        """
        return TextStream(self._tokenizer, special)


class TextStream:
    """Decodes a growing list of ids; text appears once its bytes form whole characters."""

    def __init__(self, tokenizer: HFTokenizer, special: bool = False) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=not special)

    def push(self, token: int) -> str:
        """The text that `token` completes, "" while a character is still unfinished."""
        return self._stream.step(self._tokenizer, token) or ""
