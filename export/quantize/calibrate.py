"""What calibration samples decide: bits of each linear, GPTQ's codes, scales of the KV cache.

All quantized weights are held in memory as codes meanwhile; the originals come one at a time.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import EMBEDDING, LINEARS, STACKS, TOKENIZER, linear
from hrm_edge.progress import counting, track
from hrm_edge.prompt import Tokenizer
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

from ..recipe import GPTQ, RTN, Calibration, Format, Method
from ..reference.forward import Batch, forward
from ..reference.predict import batches, is_small, reader
from ..targets import Target
from .ggml import Blocks
from .gptq import gptq
from .grid import Quantized, dequantize
from .hessians import Moments, Original, corrected, moments, pass_weights
from .kv_scales import CacheScales, FittedCache
from .sensitivity import pass_sensitivities, wider

FIT_TOKENS = 1024  # that the cache of a large model is fitted to
INPUTS_BYTES = 1 << 30  # of the original's inputs that are kept, where there are many stages
Round = Callable[[np.ndarray, Format, Method], Quantized | Blocks]


def calibration_samples(checkpoint: Checkpoint, calibration: Calibration) -> list[Sample]:
    """The samples that `calibration` names, in a random order of its own.

    Raises HRMEdgeError if there is none that the model can read.
    """
    name, samples = _draw(checkpoint, calibration)
    if not samples:
        longest = checkpoint.config.max_position_embeddings
        raise HRMEdgeError(f"{name}: no line fits the model's {longest} positions")
    return samples


def can_calibrate(checkpoint: Checkpoint, calibration: Calibration) -> bool:
    """Whether there is a tokenizer and a sample to calibrate with, where nobody asked for it."""
    tokenizer = checkpoint.path / TOKENIZER
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
    return tuple(linear(stack, layer, part) for part in LINEARS)


class _Values:
    """Quantized weights as float32, kept for a small model and made anew for a large one."""

    def __init__(self, config: HRMTextConfig, format_of: Callable[[str], Format]) -> None:
        self._shapes, self._format_of = config.tensor_shapes(), format_of
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
        values = dequantize(self.codes[name], self._format_of(name).bits, columns)
        if self._keep:
            self._kept[name] = values
        return values


class Calibrated:
    """One checkpoint, one target and the samples to fit it to; `rounded` needs none of them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        samples: Sequence[Sample],
        rounded: Round,
        work: Path | None,
    ) -> None:
        self.checkpoint, self.target, self.recipe = checkpoint, target, target.recipe
        self.config, self.read = checkpoint.config, reader(checkpoint)
        self.samples, self.batch = samples, Batch.of(samples, checkpoint.config.prefix_lm)
        self._rounded = rounded
        self._done = None if work is None else _Done(work, checkpoint, target)

    def choose_bits(self) -> dict[str, int]:
        """8 for the linears that profit most, as far as target_bits allows."""
        assert self.recipe.target_bits is not None
        chosen = wider(self.config, self.read, self.samples, self._round, self.recipe)
        return dict.fromkeys(chosen, 8)

    def gptq(self, bits: Mapping[str, int]) -> dict[str, Quantized]:
        """Every linear of the stacks, stage by stage."""
        method = self.recipe.method
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
                done = gptq(weight, hessian, self._format(name, bits), method)
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
        self, bits: Mapping[str, int], codes: Mapping[str, Quantized]
    ) -> dict[int, CacheScales]:
        """Scales of each cache slot, fitted to what the quantized model puts there."""
        values = self._values(bits)
        for name in (n for step in stages(self.config, GPTQ(stage="model")) for n in step):
            if self.recipe.bits < 16:
                values.put(name, codes.get(name) or self._round(name, bits))
        kv_bits = self.config.slot_bits(self.recipe.kv_bits, self.recipe.kv_h_bits)
        fitted = FittedCache(self.config, values, kv_bits)
        batch = self.batch
        if not is_small(self.config):
            batch = Batch.of(next(batches(self.samples, FIT_TOKENS)), self.config.prefix_lm)
        forward(self.config, self.read, batch, [fitted])
        return fitted.scales

    def _values(self, bits: Mapping[str, int]) -> _Values:
        values = _Values(self.config, lambda name: self._format(name, bits))
        table, form = self.read(EMBEDDING), self._format(EMBEDDING, {})
        if form.quantized:
            found = self._rounded(table, form, RTN())
            quantized = isinstance(found, Quantized)
            columns = table.shape[1]
            values.embedding = (
                dequantize(found, form.bits, columns) if quantized else found.values()
            )
        return values

    def _format(self, name: str, bits: Mapping[str, int]) -> Format:
        return self.target.format(self.config, name, bits.get(name))

    def _round(self, name: str, bits: Mapping[str, int] | None = None) -> Quantized:
        form = self._format(name, bits or {})
        found = self._rounded(self.read(name), form, self.recipe.method)
        assert isinstance(found, Quantized), (name, form)
        return found

    def _restored(self, step: int, name: str) -> Quantized | None:
        return None if self._done is None else self._done.load(step, name)


class _Done:
    """Finished linears as files, in a directory named after all that they depend on."""

    def __init__(self, work: Path, checkpoint: Checkpoint, target: Target) -> None:
        files = [f.stat() for f in sorted(set(checkpoint.files.values()))]
        recipe, config = target.recipe, checkpoint.config
        data = recipe.calibration.data
        stamp = (
            [(s.st_size, s.st_mtime_ns) for s in files],
            None if data is None else data.read_bytes(),
        )
        formats = [target.format(config, name) for name in config.tensor_shapes()]
        draw = (recipe.calibration.tokens, recipe.calibration.seed)
        choices = (recipe.method, recipe.rotate, recipe.target_bits, formats)
        kept = (choices, draw, stamp, version("hrm-edge"))
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
