"""The training loop: from a config and JSONL to a checkpoint directory.

Holds the order of things in a run and nothing of how each is done. Everything a run writes lies
under `out`: tokenizer/, data/ (token arrays), state/ (resumable), metrics.jsonl, tensorboard/, the
curves, and at the end checkpoint/, a Hugging Face directory with the averaged weights.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hrm_edge.errors import HRMEdgeError
from hrm_edge.model import HRMText
from hrm_edge.prompt import Tokenizer

from .checkpointing import Progress, load_state, save_state, states
from .config import TrainConfig, check_config, load_config
from .distributed import World, full, join_world, reshard, shard
from .evaluate import evaluate
from .metrics import Metrics
from .objective import outcome
from .optimizer import AdamATan2
from .packing import Rows, Stream, build_rows, next_bins
from .plots import plot_run
from .prepare import Corpus, prepare
from .schedule import bp_passes, learning_rate
from .variants import build_model
from .weights import save_model


def train(
    config: TrainConfig | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    valid: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train from scratch and return the checkpoint directory.

    config: a TrainConfig, a YAML file or a preset's name. data, valid: JSONL files (see data.py).
    resume: continue from the newest state under `out`. Raises HRMEdgeError for every user mistake.
    """
    if not isinstance(config, TrainConfig):
        config = load_config(config)
    check_config(config, "config")
    with join_world() as world:
        out = Path(out)
        _check_out(out, resume)
        corpus = prepare(config, Path(data), Path(valid) if valid else None, out, world)
        architecture = config.architecture(corpus.vocab_size, corpus.special_tokens)
        model = build_model(architecture, config.model.variant, config.run.seed)
        return Run(config, model, corpus, out, world, resume, quiet).run()


def _check_out(out: Path, resume: bool) -> None:
    found = states(out / "state")
    if found and not resume:
        raise HRMEdgeError(f"{out} holds a run ({found[-1].name}); --resume continues it")
    if (out / "checkpoint").exists() and not resume:
        raise HRMEdgeError(f"{out} holds a finished run; choose another directory")


@dataclass
class Totals:
    """Sums since the last line of metrics."""

    loss: float = 0.0
    targets: float = 0.0
    hits: float = 0.0
    used: float = 0.0
    slots: int = 0
    seconds: float = 0.0


class Run:
    """One run's moving parts; `run()` trains to the end."""

    def __init__(
        self,
        config: TrainConfig,
        model: HRMText,
        corpus: Corpus,
        out: Path,
        world: World,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        self.config, self.corpus, self.out, self.world = config, corpus, out, world
        _set_up_torch(config.run.threads)
        self.model = model.to(world.device)
        shard(self.model, world, config.run.precision)
        if config.run.compile:
            for block in self.model.blocks():
                block.compile(dynamic=False)
        self.optimizer = _optimizer(self.model, config)
        self.progress = self._resume() if resume else Progress()
        self.steps = _steps(config, corpus)
        self.stream = Stream(len(corpus.train), config.run.seed, self.progress.cursor)
        self.quiet = quiet or not world.is_first
        self.totals = Totals()

    def _resume(self) -> Progress:
        found = states(self.out / "state")
        if not found:
            return Progress()
        variant = self.config.model.variant
        return load_state(found[-1], self.model, self.optimizer, variant, self.world)

    def run(self) -> Path:
        """Train to the last step, write the checkpoint directory and the curves."""
        run = self.config.run
        self.metrics = Metrics(self.out, self.progress.step, self.quiet) if self._writes else None
        self._note(self._summary())
        while self.progress.step < self.steps:
            self._step()
            step, last = self.progress.step, self.progress.step == self.steps
            if step % run.log_every == 0 or last:
                self._log()
            if run.checkpoint_every and (step % run.checkpoint_every == 0 or last):
                self._save_state()
            if self.corpus.valid and (last or (run.eval_every and step % run.eval_every == 0)):
                self._evaluate()
        return self._finish()

    @property
    def _writes(self) -> bool:
        return self.world.is_first

    def _step(self) -> None:
        """One optimizer step over `batch_tokens` token slots."""
        began, step = time.perf_counter(), self.progress.step + 1
        horizon = bp_passes(self.config.optimizer, step, self.steps)
        rows = self._next_rows()
        sums = self._accumulate(rows, horizon)
        self._check_finite(step, sums[0].item())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optimizer, step, self.steps)
        if self.config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(step, sums.tolist(), time.perf_counter() - began)

    def _next_rows(self) -> Rows:
        """This process's share of the next rows of the stream."""
        length = self.config.data.row_length
        count = self.config.run.batch_tokens // length
        bins = next_bins(self.stream, self.corpus.train.slots, count, length)
        mine = bins[self.world.rank :: self.world.size]
        rows = build_rows(self.corpus.train, mine, length, self.config.data.loss_on)
        return rows.to(self.world.device)

    def _accumulate(self, rows: Rows, horizon: int) -> torch.Tensor:
        """Back-propagate every micro-batch; return [loss, targets, hits, used] over all processes."""
        local = torch.tensor([len(rows.select)], device=rows.ids.device, dtype=torch.float64)
        targets = self.world.total(local.clone())
        sums = torch.zeros(4, device=rows.ids.device, dtype=torch.float64)
        for micro in _micro_batches(rows, self.config.run.micro_rows):
            with self._autocast():
                result = outcome(self.model, micro, horizon)
            # FSDP averages gradients over the processes, and this loss is a sum over all of them
            (result.losses.sum() * (self.world.size / targets.item())).backward()
            found = (result.losses.detach().sum(), len(result.losses), result.hits.sum())
            sums += torch.tensor([*found, micro.used], device=sums.device, dtype=torch.float64)
        return self.world.total(sums)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.run.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def _check_finite(self, step: int, loss: float) -> None:
        if math.isfinite(loss):
            return
        found = states(self.out / "state")
        kept = f"the last good state is {found[-1]}" if found else "no state was written yet"
        raise HRMEdgeError(
            f"the loss is {loss} at step {step}; {kept}; lower optimizer.lr "
            f"({self.config.optimizer.lr}) or set optimizer.clip: 1.0, then resume"
        )

    def _count(self, step: int, sums: list[float], seconds: float) -> None:
        loss, targets, hits, used = sums
        t, p = self.totals, self.progress
        t.loss, t.targets, t.hits = t.loss + loss, t.targets + targets, t.hits + hits
        t.used, t.seconds = t.used + used, t.seconds + seconds
        t.slots += self.config.run.batch_tokens
        self.progress = Progress(
            step, self.stream.cursor, p.tokens + int(used), p.seconds + seconds
        )

    def _log(self) -> None:
        t, p, self.totals = self.totals, self.progress, Totals()
        if self.metrics is None:
            return
        line = {
            "step": p.step,
            "loss": t.loss / t.targets,
            "token_accuracy": t.hits / t.targets,
            "lr": learning_rate(self.config.optimizer, p.step, self.steps),
            "bp_passes": bp_passes(self.config.optimizer, p.step, self.steps),
            "tokens": p.tokens,
            "tokens_per_second": t.used / t.seconds,
            "utilisation": t.used / t.slots,
            "seconds": p.seconds,
        }
        self.metrics.step(line, self.steps, (self.steps - p.step) * p.seconds / p.step)

    def _save_state(self) -> None:
        run, variant = self.config.run, self.config.model.variant
        folder = self.out / "state"
        save_state(folder, self.model, self.optimizer, self.progress, variant, run.keep, self.world)

    def _evaluate(self) -> None:
        assert self.corpus.valid is not None
        with self._averaged():
            scores = evaluate(
                self.model,
                self.corpus.valid,
                self.world,
                rows=_micro_rows(self.config, self.world),
                capacity=self.config.data.row_length,
                per_task=self.config.run.eval_samples,
                precision=self.config.run.precision,
            )
        if self.metrics is not None:
            self.metrics.scores(self.progress.step, scores)

    def _averaged(self):  # noqa: ANN202
        reshard(self.model)
        return self.optimizer.averaged()

    def _finish(self) -> Path:
        target = self.out / "checkpoint"
        with self._averaged():
            dtype = self.config.run.save_dtype
            save_model(target, self.model, self.corpus.tokenizer, dtype, self.world, force=True)
        if self.metrics is not None:
            self.metrics.close()
            plot_run(self.out)
        self._note(f"wrote {target}")
        return target

    def _note(self, text: str) -> None:
        if self.metrics is not None:
            self.metrics.note(text)

    def _summary(self) -> str:
        samples = self.corpus.train
        count = sum(p.numel() for p in self.model.parameters())
        return (
            f"{count:,} parameters; {len(samples):,} samples of {int(samples.slots.sum()):,} tokens "
            f"({samples.dropped_empty} empty and {samples.dropped_long} too long dropped); "
            f"{self.steps} steps of {self.config.run.batch_tokens} token slots"
        )


def _set_up_torch(threads: int) -> None:
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)


def _optimizer(model: HRMText, config: TrainConfig) -> AdamATan2:
    s = config.optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    return AdamATan2(trained, s.lr, (s.beta1, s.beta2), s.weight_decay, s.ema)


def _steps(config: TrainConfig, corpus: Corpus) -> int:
    tokens = float(corpus.train.slots.sum())
    return config.run.steps or max(1, round(config.run.epochs * tokens / config.run.batch_tokens))


def _micro_rows(config: TrainConfig, world: World) -> int:
    share = config.run.batch_tokens // config.data.row_length // world.size
    return config.run.micro_rows or share


def _micro_batches(rows: Rows, size: int) -> Iterator[Rows]:
    count = len(rows.ids)
    for start in range(0, count, size or count):
        yield rows[slice(start, start + (size or count))]


__all__ = ["Run", "Tokenizer", "full", "train"]
