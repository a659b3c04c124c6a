"""The gate: how good a bundle is, measured against its checkpoint, and whether that is enough.

The bundle's own figures come from running it; those of each source of error, of an ONNX bundle,
from the checkpoint with only that part as the bundle stores it. The reference is the numpy model
over the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm_edge.bundle import EXACT, Bundle, Decoding
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import writing
from hrm_edge.names import ONNX_MODEL, TOKENIZER
from hrm_edge.progress import status, track
from hrm_edge.prompt import Tokenizer
from hrm_edge.pte import Unavailable
from hrm_edge.samples import Limits, Sample, read_prompts, tokenize_prompts

from ..reference.figures import Figures, Tally
from ..reference.forward import Batch, Variant, forward
from ..reference.predict import batches, is_small, predict, reader
from . import plans, run_executorch, run_onnx

if TYPE_CHECKING:
    from hrm_edge.checkpoint import Checkpoint

WORK = 5e11  # multiplications that the report at export may cost for each model it runs
MOST_TOKENS = 1024
RUNNABLE = ("onnx", "executorch")


@dataclass(frozen=True)
class Gate:
    """What `export` measures and demands. `tokens` of the prompts are used (None: by model size).

    sources: whether each source of error is measured alone (None: where the model is small).
    fast_kl, fast_top1: the same limits for the plan that --fast takes (see plans.py); plans are
    measured where the model is small, or one of these is given.
    max_kl: the most mean KL divergence in nats; min_top1: the least share of equal top tokens.
    """

    data: Path | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    tokens: int | None = None
    sources: bool | None = None
    fast_kl: float | None = None
    fast_top1: float | None = None

    def __post_init__(self) -> None:
        self.fast  # noqa: B018, checks both
        if self.max_kl is not None and not self.max_kl >= 0:
            raise HRMEdgeError(f"max_kl is {self.max_kl}, expected nats of 0 or more")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise HRMEdgeError(f"min_top1 is {self.min_top1}, expected a share from 0 to 1")

    @property
    def fast(self) -> plans.Limits:
        """What a recommended plan must hold."""
        given = {"max_kl": self.fast_kl, "min_top1": self.fast_top1}
        return plans.Limits(**{name: value for name, value in given.items() if value is not None})

    def wants_plans(self, config: HRMTextConfig) -> bool:
        """Whether to measure plans for a model of this size."""
        return is_small(config) or self.fast_kl is not None or self.fast_top1 is not None

    @property
    def demands(self) -> bool:
        """Whether a bundle could be refused."""
        return self.max_kl is not None or self.min_top1 is not None

    def check(self, quality: Mapping[str, Any]) -> None:
        """Raise HRMEdgeError if the bundle's figures fall short."""
        if not self.demands:
            return
        if "bundle" not in quality:
            raise HRMEdgeError(f"max_kl and min_top1 cannot be checked: {quality['skipped']}")
        kl, top1 = quality["bundle"]["kl_mean"], quality["bundle"]["top1"]
        better = "use more bits, a smaller group_size or another method"
        if self.max_kl is not None and not kl <= self.max_kl:
            raise HRMEdgeError(f"mean KL divergence is {kl:.4f}, max_kl {self.max_kl}; {better}")
        if self.min_top1 is not None and not top1 >= self.min_top1:
            raise HRMEdgeError(f"top-1 agreement is {top1:.3f}, min_top1 {self.min_top1}; {better}")


def report(checkpoint: "Checkpoint", bundle: Bundle, gate: Gate) -> dict[str, Any]:
    """The manifest's `quality` of the bundle just made from `checkpoint`."""
    target, config = bundle.manifest.target, checkpoint.config
    if target not in RUNNABLE:
        return {"skipped": f"target {target} is not measured at export"}
    if not (checkpoint.path / TOKENIZER).is_file():
        return {"skipped": "the checkpoint has no tokenizer"}
    chosen = _Chosen.of(bundle, gate, _budget(config))
    samples = chosen.samples
    if not samples:
        return {"skipped": chosen.none}
    try:
        with status("measure"):
            measured = measure(checkpoint, bundle, samples, gate.sources)
    except Unavailable as error:
        return {"skipped": str(error).removeprefix(f"{bundle.path}/")}
    if target == "onnx" and any(config.skippable) and gate.wants_plans(config):
        measured |= {"fast": plans.measure_plans(bundle, samples, gate.fast)}
    return chosen.about() | measured


def _budget(config: HRMTextConfig) -> int:
    """Tokens that a report takes, so that it costs about as much whatever the model."""
    return max(1, min(MOST_TOKENS, int(WORK / config.weights_per_token)))


@dataclass(frozen=True)
class _Chosen:
    """The samples that figures are of."""

    data: str
    lines: int  # that there are
    samples: list[Sample]
    longest: int

    @classmethod
    def of(
        cls, bundle: Bundle, gate: Gate, budget: int | None, most: int | None = None
    ) -> "_Chosen":
        """Those of gate.data, within gate.tokens or else `budget` tokens, at most `most`."""
        name, lines = read_prompts(gate.data, "test")
        if gate.data is None:  # so that a small budget still holds several of them
            lines.sort(key=lambda line: len(line.instruction) + len(line.response))
        limits = Limits(bundle.manifest.max_seq_len, gate.tokens or budget, most)
        vocabulary = bundle.manifest.model.vocab_size
        samples = tokenize_prompts(lines, Tokenizer(bundle.path), vocabulary, limits)
        return cls(name, len(lines), samples, limits.longest)

    @property
    def none(self) -> str:
        """What to say where there is no sample."""
        return f"no line of {self.data} fits max_seq_len {self.longest}"

    def about(self) -> dict[str, Any]:
        """What a report says of them."""
        counts = {"lines": self.lines, "samples": len(self.samples), "tokens": _count(self.samples)}
        return {"data": self.data} | counts


def evaluate(
    path: Path,
    gate: Gate,
    reference: Path | None = None,
    most: int | None = None,
    plot: Path | None = None,
    how: Decoding = EXACT,
) -> dict[str, Any]:
    """The same figures later: of the bundle at `path`, against the checkpoint `reference` if given.

    Without data of one's own and `most`, they are of the samples that the export's report takes;
    else of all lines, or the first `most`. `plot` names a PNG to draw (see error_plot); `how` the
    bundle reads answers, which changes its own figures alone. Raises HRMEdgeError for a target that
    cannot be run here, another architecture, or data without a usable line.
    """
    bundle = Bundle.open(path)
    if bundle.manifest.target not in RUNNABLE:
        raise HRMEdgeError(f"{path}: only ONNX and ExecuTorch bundles can be measured")
    config = bundle.manifest.model
    alike = gate.data is None and most is None
    chosen = _Chosen.of(bundle, gate, _budget(config) if alike else None, most)
    samples, about = chosen.samples, chosen.about()
    if not samples:
        raise HRMEdgeError(chosen.none)
    if reference is None:
        if gate.demands or plot:
            raise HRMEdgeError(
                "max_kl, min_top1 and plot need the original: --reference CHECKPOINT"
            )
        return about | {"bundle": _alone(bundle, samples, how)}
    from hrm_edge.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(reference)
    if checkpoint.config.tensor_shapes() != config.tensor_shapes():
        raise HRMEdgeError(f"{reference}: its tensors are not those that {path} was made from")
    if plot is not None:
        _plot(checkpoint, bundle, samples, plot)
    return about | measure(checkpoint, bundle, samples, gate.sources is not False, how)


def _plot(checkpoint: "Checkpoint", bundle: Bundle, samples: Sequence[Sample], out: Path) -> None:
    from ..quantize.rotation import as_stored
    from ..to_onnx.stored import StoredModel
    from .error_plot import plot
    from .sources import Source, present
    from .states import StateErrors

    if bundle.manifest.target != "onnx":
        raise HRMEdgeError(f"{bundle.path}: only an ONNX bundle's errors can be plotted")
    stored = StoredModel(bundle.path / ONNX_MODEL, checkpoint.config)
    sources = [s for s in present(stored) if s != "head"]
    if not sources:
        raise HRMEdgeError(f"{bundle.path}: nothing in it is quantized, nothing to plot")
    variants = [Source(stored, source) for source in sources] + [Source(stored, *sources)]
    read = reader(as_stored(checkpoint, bundle.manifest))
    batch = Batch.of(next(batches(samples)), checkpoint.config.prefix_lm)
    found = StateErrors(checkpoint.config, len(variants))
    forward(checkpoint.config, read, batch, [Variant(), *variants], found)
    with writing(out):
        plot(found, [*sources, "all"], checkpoint.config.passes, out)


def _alone(bundle: Bundle, samples: Sequence[Sample], how: Decoding) -> dict[str, float]:
    longest, tally = max(len(sample.inputs) for sample in samples), Tally()
    predicted = runner(bundle, longest, how)
    for sample in track(samples, "evaluate"):
        tally.add(predicted(sample), np.array(sample.answer), [len(sample.answer)])
    return _shown(tally.figures())


def measure(
    checkpoint: "Checkpoint",
    bundle: Bundle,
    samples: Sequence[Sample],
    alone: bool | None = None,
    how: Decoding = EXACT,
) -> dict[str, Any]:
    """Figures of reference, bundle and (with `alone`, of ONNX) each source of error, on `samples`.

    With all sources together, `states` are the fidelity of every pass. The bundle is loaded after
    the first numpy forward, so that both are never at their peak.
    """
    from ..quantize.rotation import as_stored
    from ..to_onnx.stored import StoredModel
    from .sources import Source, present
    from .states import StateErrors

    variants, sources = [Variant()], ()
    alone = is_small(checkpoint.config) if alone is None else alone
    if alone and bundle.manifest.target == "onnx":
        stored = StoredModel(bundle.path / ONNX_MODEL, checkpoint.config)
        sources = present(stored)
        variants += [Source(stored, source) for source in sources]
        variants += [Source(stored, *sources)] if sources else []
    states = StateErrors(checkpoint.config, len(variants) - 1)
    predicted, longest = None, max(len(sample.inputs) for sample in samples)
    tallies = [Tally() for _ in range(len(variants) + 1)]
    read = reader(as_stored(checkpoint, bundle.manifest))
    for part in batches(samples):
        batch = Batch.of(part, checkpoint.config.prefix_lm)
        logits = predict(checkpoint.config, read, batch, variants, states)
        predicted = predicted or runner(bundle, longest, how)
        logits.append(np.concatenate([predicted(sample) for sample in part]))
        for tally, found in zip(tallies, logits, strict=True):
            tally.add(found, batch.targets, batch.answers, logits[0])
    reference, *rest = (tally.figures() for tally in tallies)
    found = {
        "reference": _shown(Figures(reference.perplexity, reference.exact_match)),
        "bundle": _shown(rest.pop()),
        "sources": {name: _shown(f) for name, f in zip(sources, rest, strict=False)},
    }
    return found | ({"states": states.cosines[-1].round(6).tolist()} if sources else {})


def runner(bundle: Bundle, longest: int, how: Decoding = EXACT) -> Callable[[Sample], np.ndarray]:
    """Runs the loaded bundle on samples of at most `longest` tokens: logits [len(answer), V].

    Raises HRMEdgeError if it cannot decode that way.
    """
    config, fitted = bundle.manifest.model, bundle.manifest.kv_cache.fitted
    if bundle.manifest.target == "onnx":
        model, plan = run_onnx.Loaded.open(bundle.path / ONNX_MODEL), config.plan(how.l_cycles)
        if not (all(plan) or model.flexible):
            raise HRMEdgeError(f"{bundle.path}: its graph always runs all passes; export it again")
        if how.kv_share != "none" and fitted:
            raise HRMEdgeError(f"{bundle.path}: its slots have scales of their own, not to share")
        kept = config.shared_slots(how.kv_share)
        return run_onnx.Runner(model, longest, plan if model.flexible else None, kept).logits
    if how != EXACT:
        raise HRMEdgeError(f"{bundle.path}: only an ONNX bundle runs fewer passes or shares slots")
    return run_executorch.Runner(bundle, longest).logits


def _count(samples: Sequence[Sample]) -> int:
    return sum(len(sample.answer) for sample in samples)


def _shown(figures: Figures) -> dict[str, float]:
    return {k: round(v, 6) for k, v in asdict(figures).items() if v is not None}
