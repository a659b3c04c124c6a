"""Whole runs on a toy task: what they leave behind, and how they go on after trouble."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hrm_edge.checkpoint import Checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.model import HRMText
from hrm_edge.training import checkpointing, loop, train
from hrm_edge.training.config import load_config
from hrm_edge.training.objective import Outcome
from hrm_edge.training.packing import Rows
from hrm_edge.training.weights import load_model
from tiny_training import TINY, letters, metrics

pytestmark = pytest.mark.slow

STATES = ["step-00000008", "step-00000012"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters(tmp_path_factory.mktemp("data") / "train.jsonl", 400, seed=0)


@pytest.fixture(scope="module")
def valid(data: Path) -> Path:
    return letters(data.parent / "valid.jsonl", 40, seed=1)


@pytest.fixture(scope="module")
def run(data: Path, valid: Path) -> Path:
    """An uninterrupted run."""
    out = data.parent / "run"
    train(TINY, data, out, valid=valid, quiet=True)
    return out


@pytest.fixture(scope="module")
def config_file(data: Path) -> Path:
    """TINY as YAML, for the command line."""
    path = data.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(asdict(TINY)))
    return path


def command(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["-m", "hrm_edge", "train", str(config), "--data", str(data), "--out", str(out), *more]


def test_a_run_learns_and_leaves_everything_it_promises(run: Path) -> None:
    losses = metrics(run, "loss")
    assert len(losses) == 12 and losses[-1] < 0.6 * losses[0]
    assert metrics(run, "bp_passes") == [3, 4, *[5] * 10]
    assert min(metrics(run, "utilisation")) > 0.9
    assert [p.name for p in sorted((run / "state").iterdir())] == STATES
    assert sorted(p.name for p in run.glob("*.png")) == ["exact_match.png", "loss.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in run.glob("*.png"))
    assert list((run / "tensorboard").iterdir())
    assert load_config(run / "config.yaml") == TINY
    scores = metrics(run, "scores")[-1]
    assert set(scores) == {"echo", "next"} and sum(s["samples"] for s in scores.values()) == 40


def test_transformers_reads_the_checkpoint_and_agrees(run: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(run / "checkpoint", dtype=torch.float32).eval()
    ids = torch.tensor([[6, 8, 30, 40, 50, 7]])
    expected = theirs(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits
    torch.testing.assert_close(load_model(run / "checkpoint")(ids), expected, atol=2e-5, rtol=1e-5)


def test_the_checkpoint_holds_the_averages_in_bf16(run: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    name = "model.H_module.layers.0.attn.o_proj.weight"
    key = f"optimizer.state.{name}.param_ema"
    state = {key: torch.empty(32, 32)}
    load(state, checkpoint_id=run / "state" / STATES[-1], no_dist=True)
    saved = Checkpoint.open(run / "checkpoint").tensor(name)
    assert saved.dtype.name == "bfloat16"
    found = torch.from_numpy(saved.astype("float32"))
    torch.testing.assert_close(found, state[key].bfloat16().float(), atol=0, rtol=0)


def test_after_kill_9_a_resumed_run_has_the_same_losses(
    run: Path, data: Path, valid: Path, config_file: Path, tmp_path: Path
) -> None:
    slow = "import time, hrm_edge.training.loop as l; s = l.Run._step\n"
    slow += "l.Run._step = lambda self: (s(self), time.sleep(0.1))\n"
    slow += "from hrm_edge.__main__ import main; main()"
    arguments = ["-c", slow, *command(config_file, data, tmp_path / "run")[2:]]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run/state/step-00000004").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(metrics(tmp_path / "run", "loss")) < 12
    train(TINY, data, tmp_path / "run", valid=valid, resume=True, quiet=True)
    assert metrics(tmp_path / "run", "loss") == pytest.approx(metrics(run, "loss"), rel=1e-6)
    assert metrics(tmp_path / "run", "scores") == metrics(run, "scores")


def test_a_half_written_state_is_ignored(data: Path, run: Path, tmp_path: Path) -> None:
    """What a kill during the writing of step 8 leaves: a hidden partial directory."""
    from shutil import copytree, rmtree

    copytree(run, tmp_path / "run")
    rmtree(tmp_path / "run/checkpoint")
    last = tmp_path / "run/state" / STATES[-1]
    (last / "run.json").unlink()
    last.rename(last.parent / f".{last.name}.partial")
    train(TINY, data, tmp_path / "run", resume=True, quiet=True)
    assert metrics(tmp_path / "run", "loss") == pytest.approx(metrics(run, "loss"), rel=1e-6)
    assert sorted(p.name for p in (tmp_path / "run/state").iterdir()) == STATES


def test_what_is_dropped_hangs_on_the_step_alone(
    run: Path, data: Path, valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run goes on alike, and evaluations drop nothing."""
    config = replace(TINY, optimizer=replace(TINY.optimizer, dropout=0.3))
    train(config, data, tmp_path / "whole", valid=valid, quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoint")
    shutil.rmtree(tmp_path / "half" / "state" / STATES[-1])
    torch.rand(7)
    train(config, data, tmp_path / "half", valid=valid, resume=True, quiet=True)
    found = metrics(tmp_path / "half", "loss")
    assert found == pytest.approx(metrics(tmp_path / "whole", "loss"), rel=1e-6)
    assert metrics(tmp_path / "half", "scores")[-1] == metrics(tmp_path / "whole", "scores")[-1]
    assert found != metrics(run, "loss")


def test_two_processes_have_the_losses_of_one_and_one_resumes_them(
    run: Path, data: Path, valid: Path, config_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    more = ("--valid", str(valid), "--quiet")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, *command(config_file, data, out, *more)], check=True, env=environment
    )
    assert metrics(out, "loss") == pytest.approx(metrics(run, "loss"), rel=1e-4)
    whole, sharded = Checkpoint.open(run / "checkpoint"), Checkpoint.open(out / "checkpoint")
    for name in whole.names():
        assert abs(whole.float32(name) - sharded.float32(name)).max() < 0.02

    from shutil import rmtree

    rmtree(out / "state" / STATES[-1])
    train(TINY, data, out, resume=True, quiet=True)
    assert metrics(out, "loss") == pytest.approx(metrics(run, "loss"), rel=1e-4)


def test_gradient_accumulation_does_not_change_the_losses(
    run: Path, data: Path, tmp_path: Path
) -> None:
    config = replace(TINY, run=replace(TINY.run, micro_rows=4, checkpoint_every=0))
    train(config, data, tmp_path / "run", quiet=True)
    assert metrics(tmp_path / "run", "loss") == pytest.approx(metrics(run, "loss"), rel=1e-4)


def test_compiled_blocks_train_alike(run: Path, data: Path, tmp_path: Path) -> None:
    config = replace(TINY, run=replace(TINY.run, compile=True, checkpoint_every=0))
    train(config, data, tmp_path / "run", quiet=True)
    assert metrics(tmp_path / "run", "loss") == pytest.approx(metrics(run, "loss"), rel=1e-3)


def test_bf16_starts_alike_and_learns(run: Path, data: Path, tmp_path: Path) -> None:
    config = replace(TINY, run=replace(TINY.run, precision="bf16", checkpoint_every=0))
    train(config, data, tmp_path / "run", quiet=True)
    losses, exact = metrics(tmp_path / "run", "loss"), metrics(run, "loss")
    assert losses[:3] == pytest.approx(exact[:3], rel=0.02) and losses[:3] != exact[:3]
    assert losses[-1] < 0.6 * losses[0]


def test_clipping_bounds_the_gradient(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, step = [], loop.AdamATan2.step

    def watched(self: loop.AdamATan2) -> None:
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        step(self)

    monkeypatch.setattr(loop.AdamATan2, "step", watched)
    config = replace(TINY, optimizer=replace(TINY.optimizer, clip=0.01))
    train(config, data, tmp_path / "run", quiet=True)
    assert norms == pytest.approx([0.01] * 12, rel=1e-3)


def test_fine_tuning_starts_from_a_checkpoint(
    run: Path, data: Path, valid: Path, tmp_path: Path
) -> None:
    config = replace(TINY, optimizer=replace(TINY.optimizer, lr=1e-3, bp_warmup=0.0))
    start = Path(shutil.copytree(run / "checkpoint", tmp_path / "start"))
    (start / "chat_template.jinja").write_text("{{ messages[0].content }}")
    train(config, data, tmp_path / "run", start=start, quiet=True)
    assert (tmp_path / "run/checkpoint/chat_template.jinja").is_file()
    assert metrics(tmp_path / "run", "loss")[0] < metrics(run, "loss")[-2]
    tokenizer = (run / "checkpoint/tokenizer.json").read_bytes()
    assert (tmp_path / "run/checkpoint/tokenizer.json").read_bytes() == tokenizer


def test_an_early_exit_is_learned_where_it_is_asked_for(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    honest = loop.outcome

    def watched(model: HRMText, rows: Rows, horizon: int | None, early: bool, *how: Any) -> Outcome:
        result = honest(model, rows, horizon, early, *how)
        assert (result.early is not None) == early
        with torch.no_grad():
            first = honest(model, rows, horizon, True).early
        assert first is not None
        seen.append(first.mean().item())
        return result

    monkeypatch.setattr(loop, "outcome", watched)
    for weight in (0.0, 1.0):
        config = replace(TINY, optimizer=replace(TINY.optimizer, early_exit=weight))
        train(config, data, tmp_path / f"run{weight}", start=run / "checkpoint", quiet=True)
    without, learned = seen[:12], seen[12:]
    assert without[0] == pytest.approx(learned[0])
    assert learned[-1] < 0.7 * without[-1] and learned[-1] < learned[0]


def test_lora_changes_the_projections_and_nothing_else(
    run: Path, data: Path, tmp_path: Path
) -> None:
    from hrm_edge.training.config import LoraSettings

    config = replace(TINY, lora=LoraSettings(rank=2))
    train(config, data, tmp_path / "run", start=run / "checkpoint", quiet=True)
    assert metrics(tmp_path / "run", "loss")[-1] < metrics(tmp_path / "run", "loss")[0]
    before = Checkpoint.open(run / "checkpoint")
    after = Checkpoint.open(tmp_path / "run/checkpoint")
    for name in before.names():
        same = (before.float32(name) == after.float32(name)).all()
        assert same != ("_proj" in name), name


def test_nan_stops_the_run_and_keeps_the_last_good_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = loop.outcome, []

    def broken(model: HRMText, rows: Rows, horizon: int | None, early: bool, *how: Any) -> Outcome:
        result = honest(model, rows, horizon, early, *how)
        calls.append(1)
        return replace(result, losses=result.losses * (float("nan") if len(calls) == 6 else 1))

    monkeypatch.setattr(loop, "outcome", broken)
    with pytest.raises(HRMEdgeError, match=r"the loss is nan at step 6; the last good state is "):
        train(TINY, data, tmp_path / "run", quiet=True)
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    train(TINY, data, tmp_path / "run", resume=True, quiet=True)
    assert len(metrics(tmp_path / "run", "loss")) == 12


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("unexpected pos 704 vs 598"),  # what torch's writer makes of it
    ],
)
def test_a_full_disk_is_one_line_and_costs_no_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    train(replace(TINY, run=replace(TINY.run, steps=4)), data, tmp_path / "run", quiet=True)

    def full(*_: object) -> None:
        raise raised

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(HRMEdgeError, match="the disk is full"):
        train(TINY, data, tmp_path / "run", resume=True, quiet=True)
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["step-00000004"]


def test_resuming_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(HRMEdgeError, match="run: no state to resume from; leave out --resume"):
        train(TINY, data, tmp_path / "run", resume=True, quiet=True)
    assert not (tmp_path / "run").exists()


def test_resuming_another_architecture_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    from shutil import copytree

    copytree(run, tmp_path / "run")
    wider = replace(TINY, model=replace(TINY.model, hidden_size=48))
    with pytest.raises(HRMEdgeError, match=r"was trained with hidden_size 32, .* now gives 48"):
        train(wider, data, tmp_path / "run", resume=True, quiet=True)


def test_a_finished_run_is_not_overwritten(run: Path, data: Path) -> None:
    with pytest.raises(HRMEdgeError, match=r"holds a run \(step-00000012\); --resume continues"):
        train(TINY, data, run, quiet=True)


def test_rows_that_do_not_split(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, run=replace(TINY.run, micro_rows=5))
    with pytest.raises(HRMEdgeError, match=r"run.batch_tokens 512 makes 16 rows of 32"):
        train(config, data, tmp_path / "run", quiet=True)


def test_old_states_are_removed_after_the_new_one_is_complete(run: Path) -> None:
    assert [p.name for p in checkpointing.states(run / "state")] == STATES


@pytest.mark.parametrize(("heads", "told"), [(2, False), (4, True)])
def test_heads_that_onnx_runtime_will_refuse_are_told_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], heads: int, told: bool
) -> None:
    config = replace(TINY, model=replace(TINY.model, heads=heads), run=replace(TINY.run, steps=1))
    train(config, data, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    (place,) = [i for i, line in enumerate(lines) if "parameters; " in line]
    assert ("head_dim is 8: no multiple of 16" in lines[place + 1]) == told
