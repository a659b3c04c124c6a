"""The architecture of an HRM-Text model as a frozen dataclass, read from config.json.

Knows both spellings in use: the hub's, where `num_hidden_layers` counts the layers of one stack,
and transformers', which rewrites it to the number of KV cache slots and keeps the count of one
stack in `num_layers_per_stack`. Knows nothing of weights.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrm_edge import names
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import STACKS

KV_SHARES = ("none", "cycle", "stack")
ORT_HEAD_DIM = 16  # ONNX Runtime's GroupQueryAttention takes heads of a multiple of this

# The most that is read: far beyond any model, and little enough that no count in a file of a few
# bytes keeps anyone busy for hours.
MOST_PASSES = 256
MOST_LAYERS = 1024
MOST_POSITIONS = 1 << 20
MOST = 1 << 24  # of any other size
LONGEST_SHOWN = 80  # characters of a wrong value


@dataclass(frozen=True)
class HRMTextConfig:
    """Sizes and constants of an HRM-Text model. D = hidden_size, N = layers_per_stack."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers_per_stack: int
    num_attention_heads: int
    head_dim: int
    H_cycles: int
    L_cycles: int
    max_position_embeddings: int
    embedding_scale: float
    initializer_range: float
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    prefix_lm: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def attention_size(self) -> int:
        """Width of q, k, v and the attention gate: num_attention_heads * head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def passes(self) -> tuple[str, ...]:
        """The stack that each pass of one token applies, in order: L L L H L L L H for H2 x L3."""
        return (("L",) * self.L_cycles + ("H",)) * self.H_cycles

    @property
    def skippable(self) -> tuple[bool, ...]:
        """Which passes a token can do without: all but the first cycle's last L pass and H pass."""
        kept = (self.L_cycles - 1, self.L_cycles)
        return tuple(turn not in kept for turn in range(len(self.passes)))

    def plan(
        self, l_cycles: Sequence[int] | None = None, h_cycles: int | None = None
    ) -> tuple[bool, ...]:
        """Which passes to run: `h_cycles` H cycles, and the last `l_cycles` L passes of each.

        None is all of them; `l_cycles` has a number for each cycle that runs. Raises HRMEdgeError.
        """
        h = self.H_cycles if h_cycles is None else h_cycles
        if not 1 <= h <= self.H_cycles:
            raise HRMEdgeError(
                f"h_cycles is {h}, expected 1 to {self.H_cycles} (the model's H_cycles)", "h_cycles"
            )
        counts = [self.L_cycles] * h if l_cycles is None else list(l_cycles)
        if len(counts) != h or not all(1 <= n <= self.L_cycles for n in counts):
            shown, all_of_them = (",".join(map(str, c)) for c in (counts, [self.L_cycles] * h))
            raise HRMEdgeError(
                f"l_cycles is {shown}, expected {h} of 1 to {self.L_cycles}, one number for each H "
                f"cycle (all passes: {all_of_them})",
                "l_cycles",
            )
        cycles = [(False,) * (self.L_cycles - n) + (True,) * (n + 1) for n in counts]
        return sum(cycles, ()) + (False,) * (len(self.passes) - h * (self.L_cycles + 1))

    @property
    def cache_slots(self) -> int:
        """One K,V pair per pass and layer."""
        return len(self.passes) * self.layers_per_stack

    def slot_bits(self, bits: int, h_bits: int | None = None) -> tuple[int, ...]:
        """Bits of each KV cache slot: `bits`, or `h_bits` (None: `bits` too) in an H pass."""
        of_stack = {"L": bits, "H": bits if h_bits is None else h_bits}
        return tuple(of_stack[s] for s in self.passes for _ in range(self.layers_per_stack))

    def shared_slots(self, kv_share: str) -> tuple[int, ...]:
        """The slot in whose place each KV cache slot is kept, as one of KV_SHARES says.

        "cycle": the L passes of an H cycle use that of the cycle's last L pass; "stack": all L
        passes use that of the very last one. H passes keep their own.
        """
        kept = []
        for turn, stack in enumerate(self.passes):
            h = turn // (self.L_cycles + 1)
            if stack == "L" and kv_share != "none":
                turn = (self.H_cycles if kv_share == "stack" else h + 1) * (self.L_cycles + 1) - 2
            kept += [turn * self.layers_per_stack + i for i in range(self.layers_per_stack)]
        return tuple(kept)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block: gate, q, k, v, o and the three projections of the MLP."""
        return 5 * self.hidden_size * self.attention_size + (
            3 * self.hidden_size * self.intermediate_size
        )

    @property
    def parameters(self) -> dict[str, int]:
        """Trainable parameters by part. A tied head counts nothing; z_L_init is frozen."""
        stack = self.layers_per_stack * self.layer_parameters
        table = self.vocab_size * self.hidden_size
        head = 0 if self.tie_word_embeddings else table
        return {"L": stack, "H": stack, "embedding": table, "head": head}

    @property
    def weights_per_token(self) -> int:
        """Weights that decoding one token reads: each stack once a pass, and the head once."""
        stack = self.layers_per_stack * self.layer_parameters
        return len(self.passes) * stack + self.vocab_size * self.hidden_size

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint in the hub's (fused) form."""
        d, a, f = self.hidden_size, self.attention_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            names.EMBEDDING: (self.vocab_size, d),
            names.Z_L_INIT: (d,),
        }
        if not self.tie_word_embeddings:
            shapes[names.HEAD] = (self.vocab_size, d)
        for stack in STACKS:
            for i in range(self.layers_per_stack):
                sizes = {names.GQKV: (4 * a, d), names.OUT: (d, a)}
                sizes |= {names.GATE_UP: (2 * f, d), names.DOWN: (d, f)}
                shapes |= {names.linear(stack, i, part): size for part, size in sizes.items()}
        return shapes

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config.json") -> "HRMTextConfig":
        """Read either spelling. Raises HRMEdgeError naming the key, its value, what is allowed."""
        read = _Reader(raw, where)
        if raw.get("model_type") != "hrm_text":
            read.fail("model_type", raw.get("model_type"), "'hrm_text'")
        read.must_be("hidden_act", "silu", "silu")
        read.must_be("attention_bias", False, False)
        read.must_be("mlp_bias", False, False)
        h, inner = read.count("H_cycles"), read.count("L_cycles")
        if h * (inner + 1) > MOST_PASSES:
            read.fail("H_cycles * (L_cycles + 1)", h * (inner + 1), f"at most {MOST_PASSES} passes")
        layers = read.layers_per_stack(h * (inner + 1))
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        if hidden % heads:
            read.fail("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
        read.must_be("num_key_value_heads", heads, heads)
        head_dim = read.count("head_dim", default=hidden // heads)
        if head_dim % 2:
            read.fail("head_dim", head_dim, "an even number (rotary embeddings pair the halves)")
        spread = read.positive("initializer_range", default=1 / math.sqrt(hidden))
        vocab = read.count("vocab_size")
        return cls(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            layers_per_stack=layers,
            num_attention_heads=heads,
            head_dim=head_dim,
            H_cycles=h,
            L_cycles=inner,
            max_position_embeddings=read.count("max_position_embeddings", most=MOST_POSITIONS),
            embedding_scale=read.positive("embedding_scale", default=1 / spread),
            initializer_range=spread,
            rope_theta=read.rope_theta(),
            rms_norm_eps=read.positive("rms_norm_eps", default=1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
            prefix_lm=read.flag("prefix_lm", default=True),
            pad_token_id=read.token("pad_token_id", vocab),
            bos_token_id=read.token("bos_token_id", vocab),
            eos_token_ids=read.tokens("eos_token_id", vocab),
        )

    @classmethod
    def from_file(cls, path: Path) -> "HRMTextConfig":
        """Read a config.json. Raises HRMEdgeError if it is missing, no JSON, or not this model."""
        return cls.from_dict(read_json_object(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """The hub's spelling; transformers reads it as well and derives the slots itself."""
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["HrmTextForCausalLM"],
            "model_type": "hrm_text",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers_per_stack,
            "num_attention_heads": self.num_attention_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "H_cycles": self.H_cycles,
            "L_cycles": self.L_cycles,
            "max_position_embeddings": self.max_position_embeddings,
            "embedding_scale": self.embedding_scale,
            "initializer_range": self.initializer_range,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "prefix_lm": self.prefix_lm,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; HRMEdgeError if the file is missing or holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HRMEdgeError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise HRMEdgeError(f"{path}: cannot be read ({error})") from None
    raw = parse_json(text, str(path))
    if not isinstance(raw, dict):
        raise HRMEdgeError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def parse_json(text: str, where: str) -> Any:
    """What the JSON `text` says, its numbers within 64 bits; HRMEdgeError naming `where` if not."""
    try:
        value = json.loads(text, parse_int=_int64, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text.lower():  # a surrogate, which alone is no text that could be written
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}: " if "\n" in text.strip() else ""
        raise HRMEdgeError(f"{where}: not valid JSON ({at}{error.msg})") from None
    except UnicodeEncodeError:
        raise HRMEdgeError(f"{where}: has half a character (a lone surrogate)") from None
    except ValueError as error:  # a number
        raise HRMEdgeError(f"{where}: {error}") from None
    except RecursionError:
        raise HRMEdgeError(f"{where}: its JSON is nested too deeply") from None


def _int64(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) >= 1 << 63:
        raise ValueError(f"the number {digits[:24]}... is beyond 64 bits")
    return value


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:24]} is not finite")
    return value


class _Reader:
    """Reads one config.json key by key; every failure names the file, key, value, expectation."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def fail(self, key: str, value: object, expected: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        raise HRMEdgeError(f"{self.where}: {key} is {shown}, expected {expected}")

    def _checked(self, key: str, default: Any, ok: Callable[[Any], bool], expected: str) -> Any:
        value = self.raw.get(key)
        value = default if value is None else value
        if not ok(value):
            self.fail(key, value if key in self.raw else "missing", expected)
        return value

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        expected = f"a whole number from 1 to {most}"
        return self._checked(key, default, lambda v: _is_int(v) and 1 <= v <= most, expected)

    def positive(self, key: str, default: float) -> float:
        expected = "a positive number"
        return float(self._checked(key, default, lambda v: _is_number(v) and v > 0, expected))

    def flag(self, key: str, default: bool) -> bool:
        return self._checked(key, default, lambda v: isinstance(v, bool), "true or false")

    def must_be(self, key: str, only: object, default: object) -> None:
        self._checked(key, default, lambda v: v == only, f"{only!r} (nothing else is supported)")

    def token(self, key: str, vocab: int) -> int | None:
        tokens = self.tokens(key, vocab)
        return tokens[0] if tokens else None

    def tokens(self, key: str, vocab: int) -> tuple[int, ...]:
        value = self.raw.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_int(v) and 0 <= v < vocab for v in values):
            self.fail(key, value, f"token ids below vocab_size {vocab}")
        return tuple(values)

    def rope_theta(self) -> float:
        rope = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            self.fail("rope_parameters", rope, "an object with rope_type and rope_theta")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            self.fail("rope_parameters.rope_type", kind, "'default' (no other is supported)")
        theta = rope.get("rope_theta", self.raw.get("rope_theta", 10000.0))
        if not (_is_number(theta) and theta > 0):
            self.fail("rope_theta", theta, "a positive number")
        return float(theta)

    def layers_per_stack(self, passes: int) -> int:
        listed = self.count("num_hidden_layers")
        layers = self.count("num_layers_per_stack", default=listed, most=MOST_LAYERS)
        if listed not in (layers, layers * passes):
            expected = f"{layers} or {layers * passes} with num_layers_per_stack {layers}"
            self.fail("num_hidden_layers", listed, expected)
        return layers


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
