"""The training loop: from a config and JSONL to a checkpoint directory.

Holds the order of things in a run and nothing of how each is done. Everything a run writes lies
under `out`: config.yaml, tokenizer/, data/ (token arrays), state/ (resumable), metrics.jsonl,
tensorboard/, the curves, and at the end checkpoint/, a Hugging Face directory with the averages.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import sole_writer, writing
from hrm_edge.model import HRMText

from .checkpointing import Progress, load_state, save_state, states
from .config import TrainConfig, check_config, load_config, remarks, train_config_like
from .distributed import World, join_world, reshard, shard
from .evaluate import evaluate
from .interrupt import Stop
from .lora import add_lora, merge_lora
from .metrics import Metrics
from .objective import outcome
from .optimizer import AdamATan2
from .packing import Rows, Stream, build_rows
from .plots import plot_run
from .prepare import Corpus, prepare
from .qat import add_qat
from .schedule import Pace, bp_passes, grown_plan, kv_share, learning_rate, plan
from .weights import load_model, load_weights, new_model, save_model


def train(
    config: TrainConfig | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    valid: str | Path | None = None,
    start: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    qat: int = 0,
) -> Path:
    """Train a model and return its checkpoint directory.

    config: a TrainConfig, a YAML file or a preset's name. data, valid: JSONL files (see data.py).
    start: a checkpoint directory to fine-tune: its sizes and tokenizer replace those of `config`.
    qat: a group size to train with weights rounded to 4 bits (see qat.py); 0 as the config says.
        The loss is then that against `start` itself, unless the config's qat.distill is false.
    resume: continue from the newest state under `out`. Raises HRMEdgeError for every user mistake.
    """
    if not isinstance(config, TrainConfig):
        config = load_config(config)
    checkpoint = Checkpoint.open(Path(start)) if start is not None else None
    if checkpoint is not None:
        config = _to_finetune(config, checkpoint)
    if qat:
        run = replace(config.run, save_dtype="float32")
        config = replace(config, run=run, qat=replace(config.qat, bits=4, group_size=qat))
    check_config(config, "config")
    distill = config.qat.bits > 0 and config.qat.distill
    if distill and checkpoint is None:
        raise HRMEdgeError("qat needs --init CHECKPOINT to learn from, or qat.distill: false")
    out = Path(out)
    _check_out(out, resume)  # before anything is made, and again when no other run can be writing
    with join_world() as world, sole_writer(out) if world.is_first else contextlib.nullcontext():
        _check_out(out, resume)
        corpus = prepare(config, Path(data), Path(valid) if valid else None, out, world)
        model = _model(config, corpus, checkpoint)
        teacher = load_model(checkpoint.path) if checkpoint is not None and distill else None
        with writing(out, "--resume goes on from the last state"):
            return Run(config, model, corpus, out, world, resume, quiet, teacher).run()


def _to_finetune(config: TrainConfig, checkpoint: Checkpoint) -> TrainConfig:
    """`config` with the checkpoint's sizes and tokenizer."""
    config = train_config_like(checkpoint.config, config)
    return replace(config, data=replace(config.data, tokenizer=str(checkpoint.path)))


def _model(config: TrainConfig, corpus: Corpus, checkpoint: Checkpoint | None) -> HRMText:
    """A fresh model, or the checkpoint's; with adapters if the config asks for them."""
    if checkpoint is None:
        architecture = config.architecture(corpus.vocab_size, corpus.special_tokens)
        model = new_model(architecture, config.run.seed)
    else:
        model = HRMText(checkpoint.config)
        load_weights(model, checkpoint)
    if config.lora.rank:
        add_lora(model, config.lora, config.run.seed)
    if config.qat.bits:
        add_qat(model, config.qat)
    return model


def _check_out(out: Path, resume: bool) -> None:
    found = states(out / "state")
    if resume and not found:
        raise HRMEdgeError(f"{out}: no state to resume from; leave out --resume to begin")
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
    samples: float = 0.0
    steps: int = 0
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
        teacher: HRMText | None = None,
    ) -> None:
        self.config, self.corpus, self.out, self.world = config, corpus, out, world
        _set_up_torch(config.run.threads)
        self.model = model.to(world.device)
        self.teacher = None if teacher is None else teacher.requires_grad_(False).to(world.device)
        for each in filter(None, (self.model, self.teacher)):
            shard(each, world, config.run.precision)
        self.model.model.dropout = config.optimizer.dropout
        if config.run.compile:
            for block in self.model.blocks():
                block.compile(dynamic=False)
        self.optimizer = _optimizer(self.model, config)
        self.progress = self._resume() if resume else Progress()
        self.steps = _steps(config, corpus)
        self.stream = Stream(
            corpus.train.slots,
            config.data.row_length,
            config.run.seed,
            self.progress.window,
            self.progress.row,
        )
        self.totals, self.stop = Totals(), Stop(world.size == 1, self._note)
        self.pace = Pace(config.optimizer, model.config, self.steps)
        begun = self.progress.step
        self.metrics = Metrics(out, begun, self.steps, quiet) if world.is_first else None
        if world.is_first:
            (out / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))

    def _resume(self) -> Progress:
        found = states(self.out / "state")
        if not found:
            return Progress()
        return load_state(found[-1], self.model, self.optimizer, self._identity(), self.world)

    def _identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        config = self.config
        extra = {"lora.rank": config.lora.rank}
        extra |= {"data.row_length": config.data.row_length, "run.seed": config.run.seed}
        return self.model.config.to_dict() | extra

    def run(self) -> Path:
        """Train to the last step, write the checkpoint directory and the curves."""
        self._note(self._summary() + remarks(self.model.config))
        try:
            with self.stop:
                while self.progress.step < self.steps:
                    self._step()
                    self._after_step()
                    self._stop_if_asked()
            target = self._save_checkpoint()
        finally:
            if self.metrics is not None:
                self.metrics.close()
        if self.metrics is not None:
            plot_run(self.out)
        self._note(f"wrote {target}")
        return target

    def _stop_if_asked(self) -> None:
        if not self.stop.asked or self.progress.step == self.steps:
            return
        self._save_state()
        raise HRMEdgeError(
            f"stopped at step {self.progress.step} of {self.steps}, which is kept in {self.out}; "
            "the same command with --resume goes on"
        )

    def _after_step(self) -> None:
        """Whatever is due at this step: metrics, a state, an evaluation."""
        run, step, last = self.config.run, self.progress.step, self.progress.step == self.steps
        if self.metrics is not None:
            self.metrics.tick(step)
        if last or step % run.log_every == 0:
            self._log()
        if run.checkpoint_every and (last or step % run.checkpoint_every == 0):
            self._save_state()
        if self.corpus.valid and (last or (run.eval_every and step % run.eval_every == 0)):
            self._evaluate()

    def _step(self) -> None:
        """One optimizer step over `batch_tokens` token slots."""
        began, step = time.perf_counter(), self.progress.step + 1
        horizon = bp_passes(self.config.optimizer, step, self.steps)
        rows = self._next_rows()
        settings, seed = self.config.optimizer, self.config.run.seed
        how = plan(settings, self.model.config, seed, step, self.steps)
        share = kv_share(settings, seed, step)
        if settings.dropout:  # drawn by the step, so that a run that was stopped goes on alike
            torch.manual_seed((seed << 40) + step * self.world.size + self.world.rank)
        sums = self._accumulate(rows, horizon, how, share)
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
        bins = self.stream.take(self.config.run.batch_tokens // length)
        mine = bins[self.world.rank :: self.world.size]
        rows = build_rows(self.corpus.train, mine, length, self.config.data.loss_on)
        return rows.to(self.world.device)

    def _accumulate(
        self, rows: Rows, horizon: int, chosen: tuple[bool, ...], share: str
    ) -> torch.Tensor:
        """Back-propagate every micro-batch; return loss, targets, hits, used, samples over all."""
        local = torch.tensor([len(rows.select)], device=rows.ids.device, dtype=torch.float64)
        targets = self.world.total(local.clone())
        sums = torch.zeros(5, device=rows.ids.device, dtype=torch.float64)
        weight, smoothing = self.config.optimizer.early_exit, self.config.optimizer.label_smoothing
        for micro in _micro_batches(rows, self.config.run.micro_rows):
            with self._autocast():
                early, teacher = weight > 0, self.teacher
                result = outcome(
                    self.model, micro, horizon, early, teacher, chosen, share, smoothing
                )
            loss = result.losses.sum()
            if result.early is not None:
                loss = loss + weight * result.early.sum()
            # FSDP averages gradients over the processes, and this loss is a sum over all of them
            (loss * (self.world.size / targets.item())).backward()
            found = (result.losses.detach().sum(), len(result.losses), result.hits.sum())
            found = (*found, micro.used, micro.samples)
            sums += torch.tensor(found, device=sums.device, dtype=torch.float64)
        return self.world.total(sums)

    def _autocast(self) -> torch.autocast:
        """bf16 where the config asks for it."""
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
        loss, targets, hits, used, samples = sums
        self.pace.count(step, seconds)
        t, p = self.totals, self.progress
        t.loss, t.targets, t.hits = t.loss + loss, t.targets + targets, t.hits + hits
        t.used, t.seconds, t.samples = t.used + used, t.seconds + seconds, t.samples + samples
        t.slots, t.steps = t.slots + self.config.run.batch_tokens, t.steps + 1
        self.progress = Progress(
            step, self.stream.window, self.stream.row, p.tokens + int(used), p.seconds + seconds
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
            "samples_per_second": t.samples / t.seconds,
            "utilisation": t.used / t.slots,
            "seconds": p.seconds,
        }
        self.metrics.step(line, self.pace.left(p.step))

    def _save_state(self) -> None:
        save_state(
            self.out / "state",
            self.model,
            self.optimizer,
            self.progress,
            self._identity(),
            self.config.run.keep,
            self.world,
        )

    def _evaluate(self) -> None:
        assert self.corpus.valid is not None
        step = self.progress.step
        with self._averaged():
            scores = evaluate(
                self.model,
                self.corpus.valid,
                self.world,
                rows=_micro_rows(self.config, self.world),
                capacity=self.config.data.row_length,
                per_task=self.config.run.eval_samples,
                precision=self.config.run.precision,
                plan=grown_plan(self.config.optimizer, self.model.config, step, self.steps),
            )
        if self.metrics is not None:
            self.metrics.scores(step, scores)

    def _averaged(self) -> AbstractContextManager[None]:
        """A block in which the model holds its moving averages."""
        reshard(self.model)
        return self.optimizer.averaged()

    def _save_checkpoint(self) -> Path:
        target, dtype = self.out / "checkpoint", self.config.run.save_dtype
        with self._averaged():
            if self.config.lora.rank:
                merge_lora(self.model)
            save_model(target, self.model, self.corpus.tokenizer, dtype, self.world, force=True)
        return target

    def _note(self, text: str) -> None:
        if self.metrics is not None:
            self.metrics.note(text)

    def _summary(self) -> str:
        samples = self.corpus.train
        count = sum(p.numel() for p in self.model.parameters())
        return (
            f"{count:,} parameters; {len(samples):,} samples, {int(samples.slots.sum()):,} tokens "
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
