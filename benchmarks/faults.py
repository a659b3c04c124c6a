"""What is left when writing fails: each operation that writes, with a fault at every place in turn.

    python -m benchmarks.faults -o benchmarks/results/faults.md

A library in front of the system's (faults.cpp) counts the calls that change files: open, write,
rename, fsync, mkdir, unlink and their kin, from Python, ONNX Runtime, safetensors and torch alike.
For each n, an operation is run with the n-th call failing (`fails`), with it and every later one
that needs room failing as on a full disk (`full`), and with the process killed there (`killed`).
Afterwards the old or the new result must be there, whole; an error must be one line; and once the
operation is run again, undisturbed, nothing may lie about that would not lie there anyway.
What is written through mapped memory, or by the C library itself, is not reached.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from hrm_edge.bundle import Bundle
from hrm_edge.chat_template import Message
from hrm_edge.checkpoint import Checkpoint, write_checkpoint
from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import export
from hrm_edge.runtime import load
from hrm_edge.runtime.cli.conversation import read_messages, save_messages

from .make_checkpoint import config, make

MODES = {"fails": 1, "full": 2, "killed": 3}
VOCAB = 288
PROMPT = "Name three noble gases."
CHILD = "HRM_EDGE_FAULTS"


@dataclass(frozen=True)
class Operation:
    """Something that writes below a directory: how things stood before, and how to tell after."""

    name: str
    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    state: Callable[[Path], str]  # "old" or "new"; raises if it is neither
    volatile: tuple[str, ...] = ()  # names with a time in them, which differ from run to run


def _checkpoint(path: Path, seed: int = 0) -> Path:
    small = replace(config("tiny", VOCAB), max_position_embeddings=64, layers_per_stack=1)
    return make(small, path, seed)


def _sources(place: Path) -> None:
    _checkpoint(place / "source")
    _checkpoint(place / "other", seed=1)


def _export(place: Path, target: str = "onnx", force: bool = False, source: str = "other") -> None:
    export(place / source, place / "out", target=target, force=force, gate=None)


def _bundle_state(place: Path) -> str:
    if not (place / "out").exists():
        return "old"
    manifest = Bundle.open(place / "out", verify=True).manifest
    if not (place / "reference").exists():
        return "new"
    before = Bundle.open(place / "reference").manifest
    return "old" if manifest.files == before.files else "new"


def _with_bundle(place: Path) -> None:
    _sources(place)
    _export(place, source="source")
    shutil.copytree(place / "out", place / "reference")


def _checkpoint_state(place: Path) -> str:
    if not (place / "copy").exists():
        return "old"
    found = Checkpoint.open(place / "copy")
    assert all(np.isfinite(found.float32(name)).all() for name in found.names())
    return "new"


def _copy_checkpoint(place: Path) -> None:
    source = Checkpoint.open(place / "source")
    named = ((name, source.tensor(name)) for name in source.names())
    write_checkpoint(place / "copy", source.config, named, tokenizer=source.path)


def _cached(place: Path, verify: bool = False) -> list[int]:
    model = load(place / "out", threads=1, weight_cache=place / "cache", verify=verify)
    return list(model.generate(PROMPT, max_tokens=8).tokens)


def _cache_state(place: Path) -> str:
    """The weight cache: what is loaded over what was left must answer as the bundle does."""
    entries = [path for path in (place / "cache").glob("*") if not path.name.startswith(".")]
    plain = load(place / "out", threads=1).generate(PROMPT, max_tokens=8).tokens
    if entries:
        assert _cached(place) == list(plain), "another answer from the weight cache"
    return "new" if entries else "old"


def _save_prefix(place: Path, prompt: str = "Another question") -> None:
    model = load(place / "out", threads=1)
    model.generate(prompt, max_tokens=1)
    model.save_prefix(place / "prefix.kv")


def _prefix_state(place: Path) -> str:
    model = load(place / "out", threads=1)
    model.restore_prefix(place / "prefix.kv")
    return "old" if model.session.prefix == model.encode(PROMPT, "direct") else "new"


def _with_prefix(place: Path) -> None:
    _with_bundle(place)
    _save_prefix(place, PROMPT)


def _save_chat(place: Path, count: int = 4) -> None:
    roles = ("user", "assistant") * (count // 2)
    save_messages(place / "chat.json", [Message(role=role, content="Hi") for role in roles])


def _chat_state(place: Path) -> str:
    return "old" if len(read_messages(place / "chat.json")) == 2 else "new"


def _train(place: Path, steps: int = 4) -> None:
    from hrm_edge.training import config as settings
    from hrm_edge.training import train

    tiny = settings.TrainConfig(
        settings.ModelSettings(hidden_size=32, intermediate_size=48, layers=1, heads=2),
        settings.DataSettings(vocab_size=280, row_length=32),
        settings.OptimizerSettings(lr=2e-2, warmup_steps=4, ema=0.8),
        settings.RunSettings(
            steps=steps, batch_tokens=64, log_every=1, checkpoint_every=2, threads=1
        ),
    )
    resume = (place / "run" / "state").exists()
    train(tiny, place / "lines.jsonl", place / "run", resume=resume, quiet=True)


def _with_run(place: Path) -> None:
    line = '{"instruction": "echo abc", "response": "c"}\n'
    (place / "lines.jsonl").write_text(line * 40)
    _train(place, 2)


def _run_state(place: Path) -> str:
    from hrm_edge.training.checkpointing import states

    newest = states(place / "run" / "state")[-1].name
    Checkpoint.open(place / "run" / "checkpoint")
    return "new" if newest == "step-00000004" else "old"


OPERATIONS = (
    Operation("export to a new name", _sources, _export, _bundle_state),
    Operation(
        "export --force over a bundle",
        _with_bundle,
        lambda place: _export(place, force=True),
        _bundle_state,
    ),
    Operation("export -t gguf", _sources, lambda place: _export(place, "gguf"), _bundle_state),
    Operation("write a checkpoint", _sources, _copy_checkpoint, _checkpoint_state),
    Operation("make a weight cache", _with_bundle, _cached, _cache_state, ("checked.json",)),
    Operation("--prompt-cache over an old one", _with_prefix, _save_prefix, _prefix_state),
    Operation(
        "/save over an old chat", lambda place: _save_chat(place, 2), _save_chat, _chat_state
    ),
    Operation("train --resume", _with_run, _train, _run_state, ("tensorboard", "metrics.jsonl")),
)


def compiled(folder: Path) -> Path:
    """The library, made by g++ in `folder`."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.cpp")
    command = ["g++", "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


def _in_a_child(work: Callable[[], object], place: Path, n: int = 0, mode: int = 0) -> str:
    """What became of `work` in a forked process with a fault armed: "ok: …", an error's line, …"""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        library = ctypes.CDLL(None)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            library.faults_arm(os.fsencode(place), n, mode)
            found = work()
            told = f"ok: {found if isinstance(found, str) else library.faults_seen()}"
        except HRMEdgeError as error:
            told = f"error: {error}"
        except BaseException:
            told = f"broken: {traceback.format_exc()}"
        library.faults_arm(b"", 0, 0)
        os.write(writing, told.encode()[-60000:])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return told or f"killed: {signal.Signals(os.WTERMSIG(status)).name}"


def _listing(place: Path, volatile: tuple[str, ...]) -> list[str]:
    found = (str(path.relative_to(place)) for path in place.rglob("*"))
    return sorted(name for name in found if not any(word in name for word in volatile))


@dataclass(frozen=True)
class Found:
    """One fault and what was wrong after it, "" if nothing was."""

    operation: str
    mode: str
    n: int
    state: str
    wrong: str


def _after(
    operation: Operation, place: Path, mode: str, told: str, expected: list[str]
) -> tuple[str, str]:
    """(state, what is wrong) after an operation that said `told`."""
    if told.startswith("broken") or "\n" in told:
        return "?", f"no clear line: {told[-300:]}"
    if mode == "full" and told.startswith("error") and "the disk is full" not in told:
        return "?", f"the full disk is not named: {told[-300:]}"
    seen = _in_a_child(lambda: operation.state(place), place)
    state = seen.removeprefix("ok: ")
    if state not in ("old", "new"):
        return "?", f"neither old nor new: {seen[-300:]}"
    if told.startswith("ok") and state == "old":
        return state, "it said that all was well, and nothing had changed"
    if state == "old":
        again = _in_a_child(lambda: operation.run(place), place)
        if not again.startswith("ok"):
            return state, f"cannot be run again: {again[-300:]}"
        left = sorted(set(_listing(place, operation.volatile)) ^ set(expected))
        if left:
            return state, f"left behind or missing: {', '.join(left[:5])}"
    return state, ""


def trial(operation: Operation, every: int = 1, first: int = 1) -> Iterator[Found]:
    """Each fault of one operation; every `every`-th place, from the `first` on."""
    with tempfile.TemporaryDirectory(prefix="hrm-edge-faults-") as scratch:
        base, place = Path(scratch) / "base", Path(scratch) / "place"
        base.mkdir()
        prepared = _in_a_child(lambda: operation.prepare(base), base)
        assert prepared.startswith("ok"), prepared
        shutil.copytree(base, place)
        calm = _in_a_child(lambda: operation.run(place), place)
        assert calm.startswith("ok"), calm
        expected = _listing(place, operation.volatile)
        for mode, code in MODES.items():
            for n in range(first, int(calm.removeprefix("ok: ")) + 1, every):
                shutil.rmtree(place)
                shutil.copytree(base, place)
                told = _in_a_child(lambda: operation.run(place), place, n, code)
                yield Found(
                    operation.name, mode, n, *_after(operation, place, mode, told, expected)
                )


def table(found: list[Found]) -> str:
    """Markdown: for each operation and mode, how many places were tried and what was left."""
    rows = ["| operation | fault | places | old | new | wrong |", "|---|---|---:|---:|---:|---:|"]
    for name, mode in dict.fromkeys((f.operation, f.mode) for f in found):
        mine = [f for f in found if (f.operation, f.mode) == (name, mode)]
        states = Counter(f.state for f in mine if not f.wrong)
        wrong = sum(bool(f.wrong) for f in mine)
        rows.append(
            f"| {name} | {mode} | {len(mine)} | {states['old']} | {states['new']} | {wrong} |"
        )
    return "\n".join(rows)


@contextlib.contextmanager
def preloaded() -> Iterator[None]:
    """Make sure that the library is in this process, starting it anew with it if need be."""
    if os.environ.get(CHILD) is None:
        with tempfile.TemporaryDirectory() as folder:
            extra = {"LD_PRELOAD": str(compiled(Path(folder))), CHILD: "1", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "benchmarks.faults", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=os.environ | extra).returncode)
    yield


@click.command()
@click.option("--every", default=1, help="Try every n-th place only.")
@click.option("--first", default=1, help="Begin with this place.")
@click.option("--only", multiple=True, help="Operations whose names hold this.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the table there too.")
def main(every: int, first: int, only: tuple[str, ...], out: Path | None) -> None:
    """Print the table, and before it what was wrong; exit 1 if anything was."""
    with preloaded():
        found: list[Found] = []
        for operation in OPERATIONS:
            if only and not any(word in operation.name for word in only):
                continue
            for each in trial(operation, every, first):
                found.append(each)
                if each.wrong:
                    click.echo(f"{each.operation}, {each.mode} at {each.n}: {each.wrong}")
        click.echo(table(found))
        if out is not None:
            out.write_text(table(found) + "\n")
        sys.exit(any(each.wrong for each in found))


if __name__ == "__main__":
    main()
