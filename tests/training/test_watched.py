"""A run as someone at a terminal sees it: the bar, the time left, Ctrl-C."""

import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.training.evaluate import Score
from hrm_edge.training.schedule import Pace, bp_passes
from tiny_training import TINY, letters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters(tmp_path_factory.mktemp("data") / "train.jsonl", 400, seed=0)


def test_ctrl_c_keeps_the_step_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    slow = replace(TINY, run=replace(TINY.run, steps=2000, checkpoint_every=0))
    config.write_text(yaml.safe_dump(asdict(slow)))
    arguments = ["-m", "hrm_edge", "train", str(config), "--data", str(data)]
    arguments += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "step 3/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    found = re.search(
        r"stopped at step (\d+) of 2000, which is kept in .*; the same command with "
        r"--resume goes on\n$",
        told,
    )
    assert found and "Traceback" not in told
    (state,) = (tmp_path / "run" / "state").iterdir()
    assert int(state.name.removeprefix("step-")) == int(found[1])
    again = subprocess.Popen(
        [sys.executable, *arguments, "--resume"], stderr=subprocess.PIPE, text=True
    )
    assert again.stderr is not None
    while f"step {int(found[1]) + 1}/" not in again.stderr.readline():
        assert again.poll() is None
    again.kill()
    again.communicate()


def test_the_time_left_knows_that_steps_grow_dearer() -> None:
    settings = replace(TINY.optimizer, bp_min=2, bp_max=5, bp_warmup=0.5, passes_warmup=0.2)
    config = TINY.architecture(300, SPECIAL_TOKENS)

    def cost(step: int) -> int:
        return 2 + 2 * 2 if step <= 20 else 8 + 2 * bp_passes(settings, step, 100)

    pace = Pace(settings, config, 100)
    assert len(config.passes) == 8 and pace.left(0) == float("inf")
    pace.count(1, 1000.0)  # compiles
    for step in range(2, 11):
        pace.count(step, 0.5 * cost(step))
    assert pace.left(10) == pytest.approx(sum(0.5 * cost(step) for step in range(11, 101)))
    assert pace.left(100) == 0


def test_a_terminal_sees_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from hrm_edge.training import metrics as module

    shown = lambda **named: Console(force_terminal=True, width=120, **named)  # noqa: E731
    monkeypatch.setattr(module, "Console", shown)
    line = {"step": 5, "loss": 0.5, "samples_per_second": 96.0, "tokens_per_second": 3000.0}
    seen = module.Metrics(tmp_path, 0, 10)
    seen.scores(4, {"a": Score(3, 0.25, 0.9, 0.8), "b": Score(1, 0.65, 0.9, 0.8)})
    seen.step(line | {"bp_passes": 5}, 75.0)
    seen.close()
    told = capsys.readouterr().err
    assert "5/10" in told and "loss 0.5000  valid 0.3500  96 samples/s" in told
    assert "0:01:15 left" in told
