"""A row of an ONNX bundle as a session: `prefill`, `decode` and `rewind` over its part of a cache.

Knows token ids and logits; nothing of text, sampling or stopping.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hrm_edge.bundle import Manifest
from hrm_edge.errors import HRMEdgeError

from .loading import Loading
from .onnx_model import OnnxModel

DEFAULT = Loading()
Plan = tuple[bool, ...]


class OnnxSession:
    """One conversation's state over one loaded model. Not for use by several threads at once."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        max_context: int,
        loading: Loading = DEFAULT,
        beside: "OnnxSession | None" = None,
    ) -> None:
        """Load `path`/model.onnx with room for `max_context` tokens in each of its rows.

        The first row is this session; a further one takes the model of one that is `beside` it.
        Raises HRMEdgeError if ONNX Runtime refuses the model or lacks the provider, or the graph
        the depth or the rows that `loading` asks for.
        """
        self.manifest, self.max_context, self.length = manifest, max_context, 0
        self._model = beside._model if beside else OnnxModel(path, manifest, max_context, loading)
        self._row = len(self._model.sessions)  # of the cache; moves, see _gather
        self._model.sessions[self._row] = self
        plan_of = manifest.model.plan
        self._h_cycles = cycles = loading.h_cycles or manifest.model.H_cycles
        self._usual = self._plan = plan_of(loading.l_cycles, cycles)
        self._shallow = plan_of([1] * cycles, cycles)  # what drafts
        if not (self._model.flexible or all(self._usual)):
            raise _rigid(str(path), self._usual)
        self.kv_share = loading.kv_share
        self.batches = self.kv_share == "none"
        self._drafted = 0  # tokens behind `length` that `draft` has read
        self.prefix: list[int] = []
        self._prefix_logits = np.array([], np.float32)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Forget everything and read `ids` as the prefix; logits [V] of the last position."""
        self._move_to(0)
        self.prefix, self._plan = [], self._usual
        self._prefix_logits = self._run(ids, keep=1)[0]
        self.prefix = list(ids)
        return self._prefix_logits

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        """`prefill`, or a mere rewind where `ids` are the prefix that is held already.

        Later calls then run `l_cycles` L passes of each H cycle, see HRMTextConfig.plan.
        """
        plan = self.plan(l_cycles)
        if self.prefix != list(ids):
            self.prefill(ids)
        self._move_to(len(self.prefix))
        self._plan = plan
        return self._prefix_logits

    def plan(self, l_cycles: Sequence[int] | None) -> Plan:
        """As Session says."""
        if l_cycles is None:
            return self._usual
        plan = self.manifest.model.plan(l_cycles, self._h_cycles)
        if not (self._model.flexible or all(plan)):
            raise _rigid("this bundle", plan)
        return plan

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V], float32.

        Where passes share slots, one by one: within a call, a pass would see of the ids before it
        what it has put there itself, not what the last pass left.
        """
        assert self.length > 0, "decode before prefill"
        if self.batches:
            return self._run(ids, keep=0)
        return np.concatenate([self._run([token], keep=0) for token in ids])

    def decode_rows(self, rows: Sequence["OnnxSession"], tokens: Sequence[int]) -> np.ndarray:
        """As Session says: a call for each plan that some of the rows run."""
        found = np.empty((len(rows), self.manifest.model.vocab_size), np.float32)
        plans: dict[Plan, list[int]] = {}
        for i, row in enumerate(rows):
            assert row.length > 0, "decode before prefill"
            plans.setdefault(row._plan, []).append(i)
        self._gather([[rows[i] for i in each] for each in plans.values()])
        for plan, each in plans.items():
            each.sort(key=lambda i: rows[i]._row)
            past = [rows[i].length for i in each]
            ids = np.array([[tokens[i]] for i in each], np.int64)
            found[each] = self._model.call(rows[each[0]]._row, past, ids, plan)[:, 0]
            for i in each:
                rows[i]._move_to(rows[i].length + 1)
        return found

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens; the first one of a sequence stays."""
        assert 0 <= n < self.length, (n, self.length)
        self._move_to(self.length - n)

    @property
    def can_draft(self) -> bool:
        """Whether `draft` may be called: the graph can leave passes out, and has some to leave."""
        return self._model.flexible and self.batches and self._usual != self._shallow

    def draft(self, ids: Sequence[int]) -> np.ndarray:
        """Read `ids`, behind those drafted before, through the last L pass of each H cycle alone.

        Logits [len(ids), V]. What that leaves in the cache, `decode` overwrites: it, a rewind and a
        new prefix forget all drafts.
        """
        assert self.can_draft and self.length > 0, (self._plan, self.length)
        logits = self._call(self.length + self._drafted, ids, self._shallow, keep=0)
        self._drafted += len(ids)
        return logits

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        """The prefix's last logits [V] and the bytes of its cache, uint8 [n]."""
        return self._prefix_logits, self._model.cache.read(self._row, len(self.prefix))

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        """Take over what `prefix_state` gave, as if `prefix` had just been read."""
        self._model.cache.write(self._row, cache, len(prefix))
        self.prefix, self._prefix_logits = list(prefix), logits
        self._move_to(len(prefix))

    def cancel(self) -> None:
        """From another thread: end the call under way, which raises Cancelled; else nothing."""
        self._model.cancel()

    def _gather(self, groups: Sequence[Sequence["OnnxSession"]]) -> None:
        """Let the rows of each group lie side by side in the cache, whatever of it has to move."""
        places = [sorted(row._row for row in group) for group in groups]
        if all(place[-1] - place[0] + 1 == len(place) for place in places):
            return
        for place, row in enumerate(row for group in groups for row in group):
            if row._row != place:
                sessions, other = self._model.sessions, self._model.sessions[place]
                self._model.cache.swap(row._row, place, max(row._held, other._held))
                row._row, other._row = place, row._row
                sessions[place], sessions[other._row] = row, other

    @property
    def _held(self) -> int:
        """Tokens of its row that it may come back to."""
        return max(self.length, len(self.prefix))

    def _move_to(self, length: int) -> None:
        self.length, self._drafted = length, 0

    def _run(self, ids: Sequence[int], keep: int) -> np.ndarray:
        logits = self._call(self.length, ids, self._plan, keep)
        self._move_to(self.length + len(ids))
        return logits

    def _call(self, past: int, ids: Sequence[int], plan: Plan, keep: int) -> np.ndarray:
        """Run the passes of `plan` on `ids` behind `past` tokens; logits [kept, V]."""
        return self._model.call(self._row, [past], np.array([ids], np.int64), plan, keep)[0]


def _rigid(which: str, plan: Sequence[bool]) -> HRMEdgeError:
    return HRMEdgeError(
        f"{which}: its graph always runs all {len(plan)} passes, not {sum(plan)} of them; export "
        "the checkpoint again"
    )
