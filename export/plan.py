"""A recipe applied to a checkpoint: which bits each linear gets, and its codes.

Round-to-nearest and HQQ look at one weight at a time and are done as the weights stream by. What
needs calibration samples is done here beforehand, with all quantized weights in memory as codes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import STACKS, HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.progress import counting, track
from hrm_edge.prompt import Tokenizer
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

from .forward import EMBEDDING, Batch, forward
from .gptq import gptq
from .hessians import Moments, Original, corrected, moments, pass_weights
from .hqq import hqq
from .kv_scales import CacheScales, FittedCache
from .quantize import Quantized, dequantize, quantize
from .recipe import GPTQ, HQQ, Calibration, Recipe
from .report import batches, is_small, reader
from .sensitivity import pass_sensitivities, wider

FIT_TOKENS = 1024  # that the cache of a large model is fitted to
INPUTS_BYTES = 1 << 30  # of the original's inputs that are kept, where there are many stages
LINEARS = ("attn.gqkv_proj", "attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Plan:
    """What calibration has decided. Linears that are not in `codes` are rounded one by one."""

    recipe: Recipe
    bits: dict[str, int] = field(default_factory=dict)
    codes: dict[str, Quantized] = field(default_factory=dict)
    caches: dict[int, CacheScales] = field(default_factory=dict)

    def bits_of(self, name: str) -> int:
        """The bits of a stack's linear."""
        return self.bits.get(name, self.recipe.bits)

    def mean_bits(self, config: HRMTextConfig) -> float | None:
        """Bits of the stacks' linears on average, if not all have the same."""
        if not self.bits:
            return None
        shapes = config.tensor_shapes()
        sizes = {n: np.prod(s) for n, s in shapes.items() if "_module" in n}
        total = sum(size * self.bits_of(n) for n, size in sizes.items())
        return round(float(total / sum(sizes.values())), 4)

    def quantized(self, name: str, weight: np.ndarray) -> Quantized:
        """The linear `name` as it is to be stored."""
        if name in self.codes:
            return self.codes[name]
        return round_weight(weight, self.bits_of(name), self.recipe)


def round_weight(weight: np.ndarray, bits: int, recipe: Recipe) -> Quantized:
    """Quantize one weight without data; 8 bits are rounded to nearest whatever the method."""
    method = recipe.method
    if isinstance(method, HQQ) and bits == 4:
        return hqq(weight, bits, recipe.group_size, method)
    return quantize(
        weight, bits, recipe.group_size, getattr(method, "symmetric", True) or bits == 8
    )


def make_plan(checkpoint: Checkpoint, recipe: Recipe, work: Path | None = None) -> Plan:
    """Decide all that needs calibration samples; nothing if the recipe needs none.

    `work` is a directory that keeps the linears that are done, so that an interrupted run goes on.
    Raises HRMEdgeError if the recipe quantizes no linear, or no sample can be used.
    """
    if recipe.calibrate_kv is None:
        coarse = 4 in (recipe.kv_bits, recipe.kv_h_bits)
        usable = coarse and _can_calibrate(checkpoint, recipe.calibration)
        recipe = replace(recipe, calibrate_kv=usable)
    if not recipe.needs_data:
        return Plan(recipe)
    if recipe.bits >= 16 and (isinstance(recipe.method, GPTQ) or recipe.target_bits is not None):
        raise HRMEdgeError("bits is 32, so no linear is quantized; use bits 4 or 8, or method rtn")
    samples = calibration_samples(checkpoint, recipe.calibration)
    run = _Calibrated(checkpoint, recipe, samples, work)
    bits = run.choose_bits() if recipe.target_bits is not None else {}
    codes = run.gptq(bits) if isinstance(recipe.method, GPTQ) else {}
    caches = run.fit_cache(bits, codes) if recipe.calibrate_kv and recipe.kv_bits < 16 else {}
    return Plan(recipe, bits, codes, caches)


def calibration_samples(checkpoint: Checkpoint, calibration: Calibration) -> list[Sample]:
    """The samples that `calibration` names, in a random order of its own.

    Raises HRMEdgeError if there is none that the model can read.
    """
    name, samples = _draw(checkpoint, calibration)
    if not samples:
        longest = checkpoint.config.max_position_embeddings
        raise HRMEdgeError(f"{name}: no line fits the model's {longest} positions")
    return samples


def _can_calibrate(checkpoint: Checkpoint, calibration: Calibration) -> bool:
    """Whether there is a tokenizer and a sample to calibrate with, where nobody asked for it."""
    tokenizer = checkpoint.path / "tokenizer.json"
    return tokenizer.is_file() and bool(_draw(checkpoint, calibration)[1])


def _draw(checkpoint: Checkpoint, calibration: Calibration) -> tuple[str, list[Sample]]:
    name, lines = read_prompts(calibration.data, "calibration")
    order = np.random.default_rng(calibration.seed).permutation(len(lines))
    config = checkpoint.config
    limits = Limits(config.max_position_embeddings, calibration.tokens)
    tokenizer = Tokenizer(checkpoint.path)
    chosen = [lines[i] for i in order]
    return name, tokenize_prompts(chosen, tokenizer, config.vocab_size, limits)


def stages(config: HRMTextConfig, method: GPTQ) -> Iterator[tuple[str, ...]]:
    """Groups of linears that are quantized on the same inputs, in order."""
    stage = method.stage
    if stage == "auto":
        stage = "linear" if is_small(config) else "stack"
    stacks = STACKS if method.order == "LH" else STACKS[::-1]
    layers = [[_linears(stack, i) for i in range(config.layers_per_stack)] for stack in stacks]
    for stack in layers:
        if stage == "stack":
            yield tuple(name for layer in stack for name in layer)
        for layer in stack:
            if stage == "layer":
                yield layer
            if stage == "linear":
                yield from ((name,) for name in layer)
    if stage == "model":
        yield tuple(name for stack in layers for layer in stack for name in layer)


def _linears(stack: str, layer: int) -> tuple[str, ...]:
    return tuple(f"model.{stack}_module.layers.{layer}.{part}.weight" for part in LINEARS)


class _Values:
    """Quantized weights as float32, kept for a small model and made anew for a large one."""

    def __init__(self, config: HRMTextConfig, bits_of: Callable[[str], int]) -> None:
        self._shapes, self._bits_of = config.tensor_shapes(), bits_of
        self._keep = is_small(config)
        self._kept: dict[str, np.ndarray] = {}
        self.codes: dict[str, Quantized] = {}
        self.embedding: np.ndarray | None = None

    def put(self, name: str, quantized: Quantized) -> None:
        self.codes[name] = quantized
        self._kept.pop(name, None)

    def __call__(self, name: str) -> np.ndarray | None:
        if name == EMBEDDING:
            return self.embedding
        if name not in self.codes:
            return None
        if name in self._kept:
            return self._kept[name]
        columns = self._shapes[name][1]
        values = dequantize(self.codes[name], self._bits_of(name), columns)
        if self._keep:
            self._kept[name] = values
        return values


class _Calibrated:
    """One checkpoint, one recipe and the samples to fit it to."""

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[Sample], work: Path | None
    ) -> None:
        self.checkpoint, self.recipe = checkpoint, recipe
        self.config, self.read = checkpoint.config, reader(checkpoint)
        self.samples, self.batch = samples, Batch.of(samples, checkpoint.config.prefix_lm)
        self._done = None if work is None else _Done(work, checkpoint, recipe)

    def choose_bits(self) -> dict[str, int]:
        """8 for the linears that profit most, as far as target_bits allows."""
        assert self.recipe.target_bits is not None
        chosen = wider(self.config, self.read, self.samples, self._round, self.recipe)
        return dict.fromkeys(chosen, 8)

    def gptq(self, bits: dict[str, int]) -> dict[str, Quantized]:
        """Every linear of the stacks, stage by stage."""
        recipe, method = self.recipe, self.recipe.method
        assert isinstance(method, GPTQ)
        values = self._values(bits)
        steps = [names for _ in range(method.rounds) for names in stages(self.config, method)]
        original = Original(self._affords_inputs(len(steps))) if method.drift else None
        weights, large = self._pass_weights(method), len(steps) == 2
        for i, names in enumerate(track(steps, "calibrate")):
            kept = {name: codes for name in names if (codes := self._restored(i, name))}
            todo = [name for name in names if name not in kept]
            found = Moments(values, frozenset(todo), weights, original)
            if todo:
                self._moments(found, original, large)
            for name, codes in kept.items():
                values.put(name, codes)
            for name in track(todo, "gptq") if large else todo:
                weight, hessian = self.read(name), found.hessians[name]
                if method.drift:
                    weight = corrected(weight, hessian, found.cross[name], method)
                width = bits.get(name, recipe.bits)
                done = gptq(
                    weight, hessian, width, recipe.group_size, method.symmetric, method.damping
                )
                values.put(name, done)
                if self._done is not None:
                    self._done.save(i, name, done)
        return values.codes

    def _moments(self, found: Moments, original: Original | None, large: bool) -> None:
        """The calibration forward; its progress is shown where it takes long."""
        layers = len(self.config.passes) * self.config.layers_per_stack
        with counting(layers, "forward") if large else nullcontext(lambda: None) as done:
            moments(
                self.config,
                self.read,
                self.batch,
                found,
                original,
                lambda turn, layer, residuals: done(),
            )

    def _pass_weights(self, method: GPTQ) -> np.ndarray:
        if method.passes == "sensitivity":
            return pass_sensitivities(self.config, self.read, self.samples)
        return pass_weights(self.config, method.passes)

    def _affords_inputs(self, steps: int) -> bool:
        """Whether the original's inputs are kept over all `steps`, rather than made anew."""
        shapes = self.config.tensor_shapes()
        widths = [shapes[name][1] for step in stages(self.config, GPTQ()) for name in step]
        passes = len(self.config.passes) / len(STACKS)
        return steps > 2 and 4 * len(self.batch.ids) * sum(widths) * passes <= INPUTS_BYTES

    def fit_cache(
        self, bits: dict[str, int], codes: dict[str, Quantized]
    ) -> dict[int, CacheScales]:
        """Scales of each cache slot, fitted to what the quantized model puts there."""
        values = self._values(bits)
        for name in (n for step in stages(self.config, GPTQ(stage="model")) for n in step):
            if self.recipe.bits < 16:
                values.put(name, codes.get(name) or self._round(name, bits.get(name)))
        kv_bits = self.config.slot_bits(self.recipe.kv_bits, self.recipe.kv_h_bits)
        fitted = FittedCache(self.config, values, kv_bits)
        batch = self.batch
        if not is_small(self.config):
            batch = Batch.of(next(batches(self.samples, FIT_TOKENS)), self.config.prefix_lm)
        forward(self.config, self.read, batch, [fitted])
        return fitted.scales

    def _values(self, bits: dict[str, int]) -> _Values:
        values = _Values(self.config, lambda name: bits.get(name, self.recipe.bits))
        recipe, table = self.recipe, self.read(EMBEDDING)
        width = _table_bits(self.config, recipe)
        if width < 16:
            rounded = quantize(table, width, recipe.group_size)
            values.embedding = dequantize(rounded, width, table.shape[1])
        return values

    def _round(self, name: str, bits: int | None = None) -> Quantized:
        return round_weight(self.read(name), bits or self.recipe.bits, self.recipe)

    def _restored(self, step: int, name: str) -> Quantized | None:
        return None if self._done is None else self._done.load(step, name)


def _table_bits(config: HRMTextConfig, recipe: Recipe) -> int:
    """Bits of the embedding: a tied one is the head."""
    return recipe.head_bits if config.tie_word_embeddings else recipe.embedding_bits


class _Done:
    """Finished linears as files, in a directory named after all that they depend on."""

    def __init__(self, work: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
        files = [f.stat() for f in sorted(set(checkpoint.files.values()))]
        data = recipe.calibration.data
        stamp = (
            [(s.st_size, s.st_mtime_ns) for s in files],
            None if data is None else data.read_bytes(),
        )
        weights = (recipe.method, recipe.bits, recipe.group_size, recipe.rotate)
        bits = (recipe.target_bits, _table_bits(checkpoint.config, recipe))
        draw = (recipe.calibration.tokens, recipe.calibration.seed)
        kept = (weights, bits, draw, stamp, version("hrm-edge"))
        key = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
        self._directory = work / key
        self._directory.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, name: str, quantized: Quantized) -> None:
        parts = {k: v for k, v in vars(quantized).items() if v is not None}
        path = self._path(step, name)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **parts)
        partial.rename(path)

    def load(self, step: int, name: str) -> Quantized | None:
        path = self._path(step, name)
        if not path.is_file():
            return None
        with np.load(path) as parts:
            return Quantized(**{key: parts[key] for key in parts.files})

    def _path(self, step: int, name: str) -> Path:
        return self._directory / f"{step}-{name}.npz"
