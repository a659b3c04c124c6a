"""`chat`: turns, commands, line editing and Ctrl-C, in a pseudo-terminal where that matters."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hrm_edge.runtime import Message, Model, load
from hrm_edge.runtime.cli.chat import command


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


def chat(bundle: Path, text: str, *flags: object) -> Result:
    return CliRunner().invoke(command, [str(bundle), *map(str, flags)], input=text)


def answer(model: Model, *turns: str, **options) -> str:
    roles = ("user", "assistant")
    messages: list[Message] = [
        {"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    return "".join(piece.text for piece in model.stream_chat(messages, **options))


def test_a_turn_reads_the_conversation_anew(model: Model, shared_bundle: Path) -> None:
    done = chat(shared_bundle, "Hello\nAnd\\\nyou?\n", "-n", 6)
    first = answer(model, "Hello", max_tokens=6)
    second = answer(model, "Hello", first, "And\nyou?", max_tokens=6)
    assert (done.exit_code, done.stdout) == (0, f"{first}\n{second}\n")


def test_commands_change_conversation_and_options(
    model: Model, shared_bundle: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "Hello",
        "/undo",
        "Hi",
        "/set max_tokens 3",
        "/ret",
        f"/save {saved}",
        "/clear",
        "Hi",
        f"/load {saved}",
        "/system Be brief.",
        "/se temperature 0.5",
        "/set seed",
        "/exit",
        "never",
    ]
    done = chat(shared_bundle, "\n".join(lines), "-n", 6)
    short = answer(model, "Hi", max_tokens=3)
    expected = [answer(model, "Hello", max_tokens=6), answer(model, "Hi", max_tokens=6)]
    assert done.stdout == "".join(text + "\n" for text in (*expected, short, short))
    assert json.loads(saved.read_text()) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": short},
    ]
    for said in ("Took back: Hello", "max_tokens = 3", "Loaded 2 messages", "temperature = 0.5"):
        assert said in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/frobnicate", "/frobnicate is no command; see /help"),
        ("/s", "/s is no command"),
        ("/undo", "no turn to take back"),
        ("/retry", "no turn to take back"),
        ("/set temperature hot", "temperature is 'hot', expected 0"),
        ("/set heat 3", "unknown option 'heat'"),
        ("/load nowhere.json", "nowhere.json: cannot be read"),
        ("/save nowhere/x.json", "nowhere/x.json: cannot be written"),
        ("y" * 300, "max_context is 256"),
    ],
)
def test_a_mistake_is_one_line_and_the_conversation_goes_on(
    model: Model, shared_bundle: Path, line: str, message: str
) -> None:
    done = chat(shared_bundle, f"{line}\nHello\n", "-n", 4)
    mistake, cut = done.stderr.splitlines()
    assert done.exit_code == 0 and message in mistake
    assert cut == "(The answer was cut; /set max_tokens allows more.)"
    assert done.stdout == answer(model, "Hello", max_tokens=4) + "\n"


def test_help_lists_every_command(shared_bundle: Path) -> None:
    found = re.findall(r"^/(\w+)", chat(shared_bundle, "/help\n").stderr, re.MULTILINE)
    assert found == ["help", "exit", "clear", "undo", "retry", "system", "set", "save", "load"]


class Terminal:
    """`hrm-edge chat` on a pseudo-terminal."""

    def __init__(self, bundle: Path, *flags: str) -> None:
        self.master, slave = pty.openpty()
        code = "from hrm_edge.runtime.cli.chat import command; command()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(bundle), *flags],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(slave)
        self.seen = ""

    def until(self, done: Callable[[str], bool], seconds: float = 60) -> str:
        """What appears from now on until it satisfies `done`."""
        end, seen = time.monotonic() + seconds, ""
        while not done(seen):
            assert time.monotonic() < end and self.process.poll() is None, self.seen + seen
            if select.select([self.master], [], [], 0.1)[0]:
                seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen += seen
        return seen

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C, again each second: Python's readline misses one that comes between two reads."""
        seen = ""
        for _ in range(60):
            os.kill(self.process.pid, signal.SIGINT)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                if select.select([self.master], [], [], 0.1)[0]:
                    seen += os.read(self.master, 4096).decode(errors="replace")
                if text in seen and seen.endswith("> "):
                    return
        raise AssertionError(self.seen + seen)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_lines_are_edited_and_ctrl_c_drops_what_was_typed(shared_bundle: Path) -> None:
    terminal = Terminal(shared_bundle, "-n", "5")
    try:
        assert "no chat template" in terminal.until(lambda s: "> " in s)
        terminal.type("/hXlp\x1b[D\x1b[D\x1b[D\x1b[3~e\n")  # left three times, delete, e
        terminal.until(lambda s: "take the last turn back" in s and s.endswith("> "))
        terminal.type("never mind")
        terminal.until(lambda s: "never mind" in s)
        terminal.interrupt_until("Ctrl-D or /exit leaves")
        terminal.type("\x1b[A\n")  # arrow up: the last line again
        terminal.until(lambda s: "take the last turn back" in s and s.endswith("> "))
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)


def test_what_was_typed_is_there_in_the_next_session(
    shared_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    kept = tmp_path / "hrm-edge" / "chat_history"

    def session(keys: str, *flags: str) -> None:
        terminal = Terminal(shared_bundle, "-n", "5", *flags)
        try:
            terminal.until(lambda s: "> " in s)
            terminal.type(keys)
            terminal.until(lambda s: "A new conversation" in s and s.endswith("> "))
            terminal.type("\x04")
            assert terminal.process.wait(20) == 0
        finally:
            terminal.process.kill()
            os.close(terminal.master)

    session("/clear one\n", "--no-history")
    assert not kept.exists()
    session("/clear one\n")
    assert "/clear one" in kept.read_text() and kept.stat().st_mode & 0o077 == 0
    session("\x1b[A\n")  # arrow up: the last session's line
    assert kept.read_text().count("/clear one") == 1  # readline does not repeat a line


def test_ctrl_c_stops_an_answer_and_keeps_what_there_is(
    model: Model, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Model.stream_chat

    def stopped(self: Model, messages: list[Message], **options):
        yield from list(whole(self, messages, **options))[:3]
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "stream_chat", stopped)
    done = chat(shared_bundle, "Hello\n/undo\n", "-n", 9, "--logit-bias", "65=90")
    assert done.exit_code == 0 and "[stopped]" in done.stderr
    assert done.stdout == "TTT\n" and "Took back: Hello" in done.stderr
