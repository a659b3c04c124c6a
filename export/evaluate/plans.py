"""What fewer L passes and shared cache slots cost a bundle: the table that --fast chooses from.

The bundle answers prompts greedily with all passes and slots of its own, as long as it has
something to say. Every plan then reads those answers, so each position is compared with the exact
bundle's own, deep in answers too. An answer is the same if every token ranks first: greedy decoding
by that plan would give it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from hrm_edge.bundle import Bundle
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import ONNX_MODEL
from hrm_edge.progress import track
from hrm_edge.samples import Sample

from ..reference.figures import Tally
from .run_onnx import Loaded, Runner

LONGEST = 256  # tokens of an answer that are looked at
TOKENS = 512  # of all answers together, at export: some seconds for a small model


@dataclass(frozen=True)
class Limits:
    """How far a recommended plan may be from the exact one.

    max_kl: the most mean KL divergence in nats; min_top1: the least share of equal top tokens.
    """

    max_kl: float = 0.003
    min_top1: float = 0.99

    def __post_init__(self) -> None:
        if not self.max_kl >= 0:
            raise HRMEdgeError(f"fast_kl is {self.max_kl}, expected nats of 0 or more")
        if not 0 <= self.min_top1 <= 1:
            raise HRMEdgeError(f"fast_top1 is {self.min_top1}, expected a share from 0 to 1")


@dataclass(frozen=True)
class Choice:
    """A plan and a way to share slots. `work`: the share of passes that a token of an answer takes;
    `memory`: of the KV cache that is kept."""

    l_cycles: tuple[int, ...]
    kv_share: str
    work: float
    memory: float


def choices(config: HRMTextConfig, shares: Sequence[str]) -> Iterator[Choice]:
    """The exact one first; then fewer passes, not more of them in an earlier cycle than in a later.

    Nothing else is worth measuring: of two plans as long, that one was better on every model seen.
    """
    plans = combinations_with_replacement(range(config.L_cycles, 0, -1), config.H_cycles)
    for plan in (tuple(reversed(plan)) for plan in plans):
        work = sum(config.plan(plan)) / len(config.passes)
        for share in shares:
            kept = config.shared_slots(share)
            yield Choice(plan, share, work, len(set(kept)) / len(kept))


class Plans:
    """A loaded bundle's own answers to samples, and how every choice reads them.

    `tokens`: after so many, further samples are left out (None: none is).
    """

    def __init__(
        self, bundle: Bundle, samples: Sequence[Sample], tokens: int | None = None
    ) -> None:
        self.manifest, self._model = bundle.manifest, Loaded.open(bundle.path / ONNX_MODEL)
        self._longest = min(
            max(len(sample.prompt) for sample in samples) + LONGEST, self.manifest.max_seq_len
        )
        self.told, self.expected, total = list[Sample](), list[np.ndarray](), 0
        usual = self._runner(self.manifest.model.plan(), None)
        for sample in track(samples, "answer"):
            if tokens is not None and total >= tokens:
                break
            most = min(LONGEST, self._longest - len(sample.prompt))
            answer, logits = usual.answer(sample.prompt, self.manifest.eos_token_ids, most)
            self.told.append(replace(sample, answer=tuple(answer)))
            self.expected.append(logits)
            total += len(answer)
        self.samples = samples[: len(self.told)]

    def read(self, choice: Choice) -> tuple[list[np.ndarray], list[bool]]:
        """(logits of the told answers by that choice, whether its own answers are the samples')."""
        config, ends = self.manifest.model, self.manifest.eos_token_ids
        kept = config.shared_slots(choice.kv_share)
        runner = self._runner(config.plan(choice.l_cycles), kept)
        found, right = list[np.ndarray](), list[bool]()
        for sample, told in zip(self.samples, self.told, strict=True):
            found.append(runner.logits(told))
            answer = told.answer
            if not (found[-1].argmax(-1) == np.array(answer)).all():
                answer = tuple(runner.answer(sample.prompt, ends, len(sample.answer))[0])
            right.append(answer == sample.answer)
        return found, right

    def row(self, choice: Choice) -> dict[str, Any]:
        """`choice` with its figures."""
        found, right = self.read(choice)
        return asdict(choice) | self.figures(found, right)

    def figures(self, found: Sequence[np.ndarray], right: Sequence[bool]) -> dict[str, float]:
        """Of what `read` gave."""
        tally = Tally()
        for sample, mine, exact in zip(self.told, found, self.expected, strict=True):
            tally.add(mine, np.array(sample.answer), [len(sample.answer)], exact)
        figures = tally.figures()
        assert figures.kl_mean is not None and figures.top1 is not None
        return {
            "kl_mean": round(figures.kl_mean, 6),
            "top1": round(figures.top1, 6),
            "same_answers": round(figures.exact_match, 6),
            "exact_match": round(sum(right) / len(right), 6),
        }

    def _runner(self, plan: tuple[bool, ...], kept: Sequence[int] | None) -> Runner:
        return Runner(self._model, self._longest, plan, kept, singly=True)


def measure_plans(bundle: Bundle, samples: Sequence[Sample], limits: Limits) -> dict[str, Any]:
    """The manifest's `quality.fast`: a row for each choice, and the one recommended."""
    shares = ("none",) if bundle.manifest.kv_cache.fitted else ("none", "cycle")
    plans = Plans(bundle, samples, TOKENS)
    rows = [plans.row(c) for c in track(list(choices(bundle.manifest.model, shares)), "plans")]
    tokens = [len(sample.answer) for sample in plans.told]
    about = {"answers": len(tokens), "tokens": sum(tokens), "longest": max(tokens)}
    about |= {"max_kl": limits.max_kl, "min_top1": limits.min_top1}
    return about | {"plans": rows, "recommended": recommended(rows, limits)}


def recommended(rows: Sequence[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    """The cheapest row within `limits`, as `l_cycles` and `kv_share`; the exact one always is.

    The least work counts, then the least memory, then the smallest divergence.
    """
    within = [
        row
        for i, row in enumerate(rows)
        if i == 0 or (row["kl_mean"] <= limits.max_kl and row["top1"] >= limits.min_top1)
    ]
    best = min(within, key=lambda row: (row["work"], row["memory"], row["kl_mean"]))
    return {name: best[name] for name in ("l_cycles", "kv_share")}
