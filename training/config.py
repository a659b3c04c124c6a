"""A training run's settings: nested frozen dataclasses read from YAML, and the preset sizes.

The sizes are the reference trainer's (sapientinc/HRM-Text, config/arch/size), whose `n_layers`
counts both stacks. Knows what the keys mean and nothing of what is done with them.
"""

import difflib
import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from hrm_edge.config import ORT_HEAD_DIM, HRMTextConfig
from hrm_edge.errors import HRMEdgeError


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the model; `layers` counts one stack. 0 for intermediate_size: 8/3 of hidden_size,
    rounded up to a multiple of 256 (as the reference does) or of 64 below 512.
    """

    hidden_size: int = 256
    intermediate_size: int = 0
    layers: int = 2
    heads: int = 4
    H_cycles: int = 2
    L_cycles: int = 3
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    prefix_lm: bool = True


@dataclass(frozen=True)
class DataSettings:
    """Tokens and rows. `row_length`: tokens of a packed row. A sample fits a row and the context
    (model.max_position_embeddings), or it is too long.
    """

    vocab_size: int = 1024
    tokenizer: str = ""  # a tokenizer.json or a directory with one; "" trains one on the data
    condition: str = "direct"  # for lines without a "condition"
    row_length: int = 128
    too_long: Literal["error", "drop"] = "error"
    loss_on: Literal["response", "all"] = "response"


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamATan2, its schedule and the back-propagation horizon (see schedule.py, optimizer.py)."""

    lr: float = 2.2e-4
    lr_min_ratio: float = 1.0  # 1 = constant after warm-up; else a cosine down to this share
    warmup_steps: int = 2000
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    ema: float = 0.9999
    clip: float = 0.0  # largest gradient norm; 0 = no clipping, as the reference
    bp_min: int = 2
    bp_max: int = 5
    bp_warmup: float = 0.2  # share of the steps over which the horizon grows
    passes_warmup: float = 0.0  # share of the steps, the first ones, with one pass of each stack
    dropout: float = 0.0  # of what attention and MLP add to the residual, alike in all passes
    label_smoothing: float = 0.0  # share of each target that is spread over the vocabulary
    early_exit: float = 0.0  # weight of the loss after the first H cycle alone; 0 = off
    fewer_passes: float = 0.0  # share of the steps that run a random number of L passes a cycle
    shared_slots: float = 0.0  # share of the steps that read prompts as --kv-share cycle does


@dataclass(frozen=True)
class LoraSettings:
    """Train low-rank adapters instead of all weights. rank 0 = off; alpha 0 = twice the rank."""

    rank: int = 0
    alpha: int = 0


@dataclass(frozen=True)
class QATSettings:
    """Compute with weights as `export` will round them (see qat.py). bits 0 = off, or 4."""

    bits: int = 0
    group_size: int = 128
    distill: bool = True  # learn the starting checkpoint's distributions, not the data's tokens


@dataclass(frozen=True)
class RunSettings:
    """Length, batch, precision and what is written when."""

    steps: int = 0  # exactly one of steps and epochs is set
    epochs: float = 0.0
    batch_tokens: int = 4096  # token slots of one optimizer step, over all processes
    micro_rows: int = 0  # rows of one forward; 0 = all of a process's share at once
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: int = 0  # 0 = torch's choice
    log_every: int = 10
    checkpoint_every: int = 500
    keep: int = 2
    eval_every: int = 500
    eval_samples: int = 0  # of each task; 0 = all
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a run but its paths."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    qat: QATSettings = field(default_factory=QATSettings)

    def architecture(self, vocab_size: int, special_tokens: dict[str, int]) -> HRMTextConfig:
        """The model's config for a tokenizer of `vocab_size` with these special tokens."""
        m = self.model
        width = m.intermediate_size or default_intermediate_size(m.hidden_size)
        return HRMTextConfig(
            vocab_size=vocab_size,
            hidden_size=m.hidden_size,
            intermediate_size=width,
            layers_per_stack=m.layers,
            num_attention_heads=m.heads,
            head_dim=m.hidden_size // m.heads,
            H_cycles=m.H_cycles,
            L_cycles=m.L_cycles,
            max_position_embeddings=m.max_position_embeddings,
            embedding_scale=math.sqrt(m.hidden_size),
            initializer_range=1 / math.sqrt(m.hidden_size),
            rope_theta=m.rope_theta,
            tie_word_embeddings=m.tie_word_embeddings,
            prefix_lm=m.prefix_lm,
            pad_token_id=special_tokens["<|PAD|>"],
            bos_token_id=special_tokens["<|im_start|>"],
            eos_token_ids=(special_tokens["<|box_end|>"],),
        )


_SCALE = OptimizerSettings()


def _large(
    hidden: int, layers: int, heads: int, lr: float, tokens: int, row: int = 4096
) -> TrainConfig:
    """A row of the reference's sizes: its vocabulary, context, batch and learning rate."""
    return TrainConfig(
        ModelSettings(hidden, 0, layers, heads, max_position_embeddings=4096),
        DataSettings(vocab_size=65536, row_length=row, too_long="drop"),
        replace(_SCALE, lr=lr),
        RunSettings(epochs=4, batch_tokens=tokens, micro_rows=1, precision="bf16", compile=True),
    )


PRESETS: dict[str, TrainConfig] = {
    "tiny": TrainConfig(
        optimizer=OptimizerSettings(lr=1e-3, lr_min_ratio=0.1, warmup_steps=100, ema=0.999),
        run=RunSettings(steps=5000),
    ),
    "finetune": TrainConfig(
        data=DataSettings(row_length=512, too_long="drop"),
        optimizer=OptimizerSettings(
            lr=3e-5, lr_min_ratio=0.1, warmup_steps=0, ema=0.999, bp_warmup=0.0
        ),
        run=RunSettings(epochs=5, batch_tokens=32768, micro_rows=8),
    ),
    "B": _large(1024, 6, 8, 2.5e-4, 131072),
    "L": _large(1280, 12, 10, 2.5e-4, 172032, row=7168),  # three rows for each of 8 GPUs
    "XL": _large(1536, 16, 12, 2.2e-4, 196608),
}


def default_intermediate_size(hidden: int) -> int:
    """SwiGLU's width with the parameters of a 4x MLP: 8/3 hidden, rounded up."""
    step = 256 if hidden >= 512 else 64
    return -(-round(hidden * 8 / 3) // step) * step


def train_config_like(config: HRMTextConfig, base: TrainConfig) -> TrainConfig:
    """`base` with the model settings of an existing checkpoint, to fine-tune it."""
    model = ModelSettings(
        config.hidden_size,
        config.intermediate_size,
        config.layers_per_stack,
        config.num_attention_heads,
        config.H_cycles,
        config.L_cycles,
        config.max_position_embeddings,
        config.rope_theta,
        config.tie_word_embeddings,
        config.prefix_lm,
    )
    return replace(base, model=model)


def load_config(source: str | Path) -> TrainConfig:
    """A preset's name or a YAML file (which may name a `preset` to start from).

    Raises HRMEdgeError naming the file, the key, its value and what was expected.
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    raw = _read_yaml(Path(source))
    name = raw.pop("preset", "tiny")
    if name not in PRESETS:
        raise HRMEdgeError(f"{source}: preset is {name!r}, expected one of {', '.join(PRESETS)}")
    base = PRESETS[name]
    run = raw.get("run")
    if isinstance(run, dict) and ("steps" in run) != ("epochs" in run):  # in place of the preset's
        base = replace(base, run=replace(base.run, steps=0, epochs=0.0))
    config = _merge(base, raw, str(source), "")
    return check_config(config, str(source))


def check_config(config: TrainConfig, where: str) -> TrainConfig:
    """Return `config`, or raise HRMEdgeError for values that do not go together."""
    run, model = config.run, config.model
    if (run.steps > 0) == (run.epochs > 0):
        _fail(where, "run.steps", run.steps, f"one of run.steps and run.epochs ({run.epochs}) > 0")
    if model.hidden_size % model.heads or (model.hidden_size // model.heads) % 2:
        _fail(where, "model.heads", model.heads, f"to split {model.hidden_size} into even heads")
    rows = run.batch_tokens // config.data.row_length
    if rows * config.data.row_length != run.batch_tokens or rows == 0:
        expected = f"a multiple of data.row_length {config.data.row_length}"
        _fail(where, "run.batch_tokens", run.batch_tokens, expected)
    if not 2 <= config.optimizer.bp_min <= config.optimizer.bp_max:
        _fail(where, "optimizer.bp_min", config.optimizer.bp_min, "2 or more, at most bp_max")
    if config.optimizer.early_exit and model.H_cycles == 1:
        _fail(where, "optimizer.early_exit", config.optimizer.early_exit, "0 with H_cycles 1")
    for key in ("passes_warmup", "dropout", "label_smoothing"):
        if not 0 <= getattr(config.optimizer, key) < 1:
            _fail(where, f"optimizer.{key}", getattr(config.optimizer, key), "0 to less than 1")
    for key in ("early_exit", "shared_slots"):  # which look at all passes
        if config.optimizer.passes_warmup and getattr(config.optimizer, key):
            found = config.optimizer.passes_warmup
            _fail(where, "optimizer.passes_warmup", found, f"0 with optimizer.{key}")
    for key in ("fewer_passes", "shared_slots"):
        if not 0 <= getattr(config.optimizer, key) <= 1:
            _fail(where, f"optimizer.{key}", getattr(config.optimizer, key), "0 to 1")
    if config.optimizer.shared_slots and config.run.compile:
        _fail(where, "run.compile", True, "false with optimizer.shared_slots")
    if config.qat.bits and config.lora.rank:
        _fail(where, "qat.bits", config.qat.bits, "0 with lora.rank > 0: adapters are not rounded")
    if config.qat.bits and config.run.save_dtype != "float32":
        _fail(where, "run.save_dtype", config.run.save_dtype, "float32 with qat.bits > 0")
    return config


def remarks(config: HRMTextConfig) -> str:
    """Lines on what such a model cannot be used for; better read before training than after."""
    if config.head_dim % ORT_HEAD_DIM:
        return (
            f"\nhead_dim is {config.head_dim}: no multiple of {ORT_HEAD_DIM}, so hrm-edge export "
            "will refuse it for ONNX Runtime (-t executorch and -t gguf do not ask for that)"
        )
    return ""


def _fail(where: str, key: str, value: object, expected: str) -> None:
    raise HRMEdgeError(f"{where}: {key} is {value!r}, expected {expected}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(PRESETS)
        raise HRMEdgeError(f"{path}: no such file, and not a preset ({known})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise HRMEdgeError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise HRMEdgeError(f"{path}: expected keys and values, found {type(raw).__name__}")
    return raw


def _merge(base: Any, raw: Any, where: str, prefix: str) -> Any:
    """`base` with the values of `raw`, recursively; unknown keys name their nearest neighbour."""
    if not isinstance(raw, dict):
        _fail(where, prefix.rstrip("."), raw, "a section of keys")
    hints = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in hints:
            raise HRMEdgeError(f"{where}: unknown key {prefix + str(key)!r}{_nearest(key, base)}")
        old = getattr(base, key)
        if is_dataclass(old):
            changes[key] = _merge(old, value, where, f"{prefix}{key}.")
        else:
            changes[key] = _typed(value, hints[key], where, prefix + key)
    return replace(base, **changes)


def _nearest(key: object, base: Any) -> str:
    names = [f.name for f in fields(base)]
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? (all: {', '.join(names)})"


def _typed(value: Any, kind: Any, where: str, key: str) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            _fail(where, key, value, f"one of {', '.join(map(str, get_args(kind)))}")
        return value
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        value = _number(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number and value >= 0 and math.isfinite(value):
        return float(value)
    if kind is int and is_number and value >= 0 and float(value).is_integer():
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    names = {float: "a number >= 0", int: "an integer >= 0", bool: "true or false", str: "text"}
    _fail(where, key, value, names[kind])


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
