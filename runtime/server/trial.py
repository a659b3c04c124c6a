"""Grammars are compiled in a child process first, which is killed if that takes too much.

llguidance has no limit of time or memory: {"type": "integer", "multipleOf": 99999999} keeps a
processor busy for minutes and grows to gigabytes, and nothing stops it once it has begun. So a
server tries each new grammar in a child, one at a time, and compiles itself only what was compiled
there in time. What passed is remembered.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrm_edge.errors import HRMEdgeError

from ..decoding.guided import Grammar, Guide

REMEMBERED = 1000
HEAVY = ("multipleOf", "maxLength", "minLength", "maxItems", "minItems", "maximum", "minimum")


@dataclass(frozen=True)
class Budget:
    """What compiling one grammar may take."""

    seconds: float = 2.0
    memory: int = 256 << 20  # bytes beyond what the child has when it is ready
    starting: float = 30.0  # seconds for the child to come up


class Trial:
    """Tries grammars for one tokenizer; called from one thread at a time, others wait."""

    def __init__(self, guide: Guide, budget: Budget | None = None) -> None:
        self._guide, self._budget = guide, budget or Budget()
        self._lock, self._passed = threading.Lock(), OrderedDict[Grammar, None]()
        self._child: _Child | None = None

    def __call__(self, grammar: Grammar) -> None:
        """Raise HRMEdgeError if `grammar` takes more than the budget to compile."""
        with self._lock:
            if grammar in self._passed:
                self._passed.move_to_end(grammar)
                return
            if not self._compiles(grammar):
                raise HRMEdgeError(_complaint(grammar, self._budget.seconds), grammar.option)
            self._passed[grammar] = None
            if len(self._passed) > REMEMBERED:
                self._passed.popitem(last=False)

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _compiles(self, grammar: Grammar) -> bool:
        if self._child is None:
            self._child = _Child(self._guide, self._budget)
        if self._child.tries(grammar, self._budget.seconds):
            return True
        self.close()
        return False


class _Child:
    """A process that has the tokenizer and compiles what it is sent."""

    def __init__(self, guide: Guide, budget: Budget) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, guide.tokenizer_path, guide.vocab_size, guide.ends, budget.memory)
        self._process = context.Process(target=_compile_all, args=arguments, daemon=True)
        self._process.start()
        other.close()
        if not self._answers(budget.starting):
            self.kill()
            raise HRMEdgeError("no process can be started to try the grammar in; try again later")

    def tries(self, grammar: Grammar, seconds: float) -> bool:
        """Whether `grammar` was compiled, or refused as wrong, in time."""
        try:
            self._pipe.send(grammar)
        except OSError:
            return False
        return self._answers(seconds)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answers(self, seconds: float) -> bool:
        try:
            return self._pipe.poll(seconds) and bool(self._pipe.recv())
        except (EOFError, OSError):  # it ran out of memory
            return False


def _compile_all(pipe: Any, tokenizer: Path, vocab_size: int, ends: list[int], memory: int) -> None:
    """The child: says True when it is ready, and after each grammar."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    with open(os.devnull, "w") as nowhere:  # what a library prints as memory runs out
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    guide = Guide(tokenizer, vocab_size, ends)
    guide.prepare()
    _limit_memory(memory)
    pipe.send(True)
    while True:
        try:
            grammar = pipe.recv()
        except EOFError:
            return
        guide.matcher(grammar)  # wrong grammars are the caller's to report
        pipe.send(True)


def _limit_memory(more: int) -> None:
    """Let this process map `more` bytes than it has, where the system can limit that."""
    try:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))
    except (ImportError, OSError, ValueError):
        return


def _complaint(grammar: Grammar, seconds: float) -> str:
    words = [f"{name} {value}" for name, value in _numbers(grammar)]
    heaviest = f"; {max(words, key=len)} is the likeliest cause" if words else ""
    return (
        f"{grammar.option} cannot be used: it takes more than {seconds:g} s or too much memory to "
        f"compile{heaviest}"
    )


def _numbers(grammar: Grammar) -> Iterator[tuple[str, Any]]:
    """The keywords of a schema whose numbers make it expensive."""
    waiting = [json.loads(grammar.text)] if grammar.option == "json_schema" else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from ((name, value[name]) for name in HEAVY if name in value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
