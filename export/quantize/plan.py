"""Every tensor of a checkpoint as a target is to store it: decided here, once.

A writer asks for tensors by name and lays out what it gets. Rounding to nearest and HQQ look at one
weight at a time and are done when it is asked for; what needs calibration samples is done before
(calibrate.py). A checkpoint whose codes are what the recipe asks for, a GGUF file, keeps them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import EMBEDDING, HEAD, is_linear, place

from ..recipe import GPTQ, HQQ, RTN, Format, Method, Recipe
from ..targets import Target, with_calibration
from .calibrate import Calibrated, calibration_samples, can_calibrate
from .ggml import Blocks, ggml_blocks
from .grid import Quantized, quantize
from .hqq import hqq
from .kv_scales import CacheScales, kv_scales

Stored = np.ndarray | Quantized | Blocks


@dataclass(frozen=True)
class Plan:
    """`checkpoint` for `target`. What calibration has decided is in the three mappings.

    `bits` of linears that are not the recipe's; `codes` by tensor; scales of `caches` by slot.
    """

    checkpoint: Checkpoint
    target: Target
    bits: Mapping[str, int] = field(default_factory=dict)
    codes: Mapping[str, Quantized] = field(default_factory=dict)
    caches: Mapping[int, CacheScales] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The target's."""
        return self.target.recipe

    def format(self, name: str) -> Format:
        """How the tensor `name` is stored."""
        return self.target.format(self.checkpoint.config, name, self.bits.get(name))

    def tensor(self, name: str) -> Stored:
        """The tensor `name` as it is to be stored: codes, or float32 values if unrounded."""
        form = self.format(name)
        if name == HEAD and self.checkpoint.config.tie_word_embeddings:
            name = EMBEDDING
        if not form.quantized:
            return self.checkpoint.float32(name)
        if name in self.codes:
            return self.codes[name]
        method = self.recipe.method if is_linear(name) else RTN()
        kept = self._kept(name, form) if method == RTN() else None
        return kept or round_weight(self.checkpoint.float32(name), form, method)

    def _kept(self, name: str, form: Format) -> Quantized | None:
        """The codes that the checkpoint itself stores, if they are of that form."""
        if form.positive or form.ggml:
            return None
        found = self.checkpoint.codes(name, form.bits, form.group_size)
        return None if found is None else Quantized(*found)

    def cache_scales(self, name: str) -> dict[int, CacheScales]:
        """K and V scales of each slot that the projection `name` fills; none in a cache of floats.

        Where they follow from the weights alone, one pair serves all of its slots.
        """
        config, recipe = self.checkpoint.config, self.recipe
        if recipe.kv_bits >= 16:
            return {}
        own, layer = place(name)
        turns = [turn for turn, stack in enumerate(config.passes) if stack == own]
        slots = [turn * config.layers_per_stack + layer for turn in turns]
        if self.caches:
            return {slot: self.caches[slot] for slot in slots}
        bits = config.slot_bits(recipe.kv_bits, recipe.kv_h_bits)[slots[0]]
        shared = CacheScales(*kv_scales(config, self.checkpoint.float32(name), bits))
        return dict.fromkeys(slots, shared)

    def mean_bits(self) -> float | None:
        """Bits of the stacks' linears on average, if not all have the same."""
        if not self.bits:
            return None
        shapes = self.checkpoint.config.tensor_shapes()
        sizes = {n: np.prod(s) for n, s in shapes.items() if is_linear(n)}
        total = sum(size * self.bits.get(n, self.recipe.bits) for n, size in sizes.items())
        return round(float(total / sum(sizes.values())), 4)


def make_plan(checkpoint: Checkpoint, target: Target, work: Path | None = None) -> Plan:
    """Decide all that needs calibration samples; nothing if the recipe needs none.

    `work` is a directory that keeps the linears that are done, so that an interrupted run goes on.
    Raises HRMEdgeError if the recipe quantizes no linear, or no sample can be used.
    """
    recipe = target.recipe
    if recipe.calibrate_kv is None:
        coarse = 4 in (recipe.kv_bits, recipe.kv_h_bits)
        usable = coarse and can_calibrate(checkpoint, recipe.calibration)
        target = with_calibration(target, usable)
        recipe = target.recipe
    if not recipe.needs_data:
        return Plan(checkpoint, target)
    if recipe.bits >= 16 and (isinstance(recipe.method, GPTQ) or recipe.target_bits is not None):
        raise HRMEdgeError("bits is 32, so no linear is quantized; use bits 4 or 8, or method rtn")
    samples = calibration_samples(checkpoint, recipe.calibration)
    run = Calibrated(checkpoint, target, samples, round_weight, work)
    bits = run.choose_bits() if recipe.target_bits is not None else {}
    codes = run.gptq(bits) if isinstance(recipe.method, GPTQ) else {}
    caches = run.fit_cache(bits, codes) if recipe.calibrate_kv and recipe.kv_bits < 16 else {}
    return Plan(checkpoint, target, bits, codes, caches)


def round_weight(weight: np.ndarray, form: Format, method: Method) -> Quantized | Blocks:
    """Quantize one weight without data; 8 bits are rounded to nearest whatever the method."""
    if form.ggml:
        return ggml_blocks(weight, form.bits)
    if isinstance(method, HQQ) and form.bits == 4:
        return hqq(weight, form.bits, form.group_size, method)
    return quantize(weight, form.bits, form.group_size, form.symmetric, form.positive)
