"""Runs an ONNX bundle over whole samples, as a device would: a prefill, then the answer's tokens.

What is measured so is what ships, the kernels' own rounding included. The runtime's session is made
for text that grows; here every token is known, so two calls a sample are enough. Where passes share
cache slots it takes one call a token: within a call, a pass would see its own tokens there.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hrm_edge.names import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_TO_KEEP, PASSES, PAST, PRESENT
from hrm_edge.numerics import ort_dtype
from hrm_edge.samples import Sample

Plan = tuple[bool, ...]  # which passes run, see HRMTextConfig.plan


@dataclass(frozen=True)
class Loaded:
    """A model.onnx on `threads` (0: all cores)."""

    session: ort.InferenceSession

    @classmethod
    def open(cls, model: Path, threads: int = 0) -> "Loaded":
        """Load `model`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return cls(ort.InferenceSession(str(model), options, ["CPUExecutionProvider"]))

    @property
    def flexible(self) -> bool:
        """Whether it can leave passes out."""
        return PASSES in (value.name for value in self.session.get_overridable_initializers())


class Runner:
    """A loaded model with cache buffers for `longest` tokens; `plan` is what answers are read by.

    `kept` says in the place of which slot each cache slot lies, see HRMTextConfig.shared_slots.
    `singly`: tokens one a call, as answers are decoded, although one call would do: kernels add up
    in another order then, and in the long run that shows.
    """

    def __init__(
        self,
        model: Loaded | Path,
        longest: int,
        plan: Plan | None = None,
        kept: Sequence[int] | None = None,
        singly: bool = False,
    ) -> None:
        self._session = (model if isinstance(model, Loaded) else Loaded.open(model)).session
        self._plan = plan
        self._singly = singly or (kept is not None and len(set(kept)) < len(kept))
        self._binding = self._session.io_binding()
        buffers: dict[str, ort.OrtValue] = {}
        for node in self._session.get_inputs():
            if node.name.startswith(PAST):
                _, heads, _, width = node.shape
                slot, _, part = node.name.removeprefix(PAST).partition(".")
                place = f"{slot if kept is None else kept[int(slot)]}.{part}"
                if place not in buffers:
                    cache = np.zeros((1, heads, longest, width), ort_dtype(node.type))
                    buffers[place] = ort.OrtValue.ortvalue_from_numpy(cache)
                self._binding.bind_ortvalue_input(node.name, buffers[place])
                present = node.name.replace(PAST, PRESENT)
                self._binding.bind_ortvalue_output(present, buffers[place])

    def logits(self, sample: Sample) -> np.ndarray:
        """Logits [len(answer), V], float32: row i predicts the answer's token i."""
        rows = [self._call(sample.prompt, 0, keep=1)]
        later = sample.answer[:-1]
        calls = [[token] for token in later] if self._singly else [later] if later else []
        for ids in calls:
            rows.append(self._call(ids, len(sample.prompt) + len(rows) - 1, 0))
        return np.concatenate(rows)

    def answer(
        self, prompt: Sequence[int], ends: Container[int], most: int
    ) -> tuple[list[int], np.ndarray]:
        """The greedy answer to `prompt`: at most `most` tokens, up to one of `ends`; and logits."""
        rows, found = [self._call(prompt, 0, keep=1)], list[int]()
        while True:
            found.append(int(rows[-1].argmax()))
            if found[-1] in ends or len(found) == most:
                return found, np.concatenate(rows)
            past = len(prompt) + len(found) - 1
            rows.append(self._call(found[-1:], past, 0))

    def _call(self, ids: Sequence[int], past: int, keep: int) -> np.ndarray:
        inputs = {
            INPUT_IDS: np.array([ids], np.int64),
            ATTENTION_MASK: np.ones((1, past + len(ids)), np.int64),
            LOGITS_TO_KEEP: np.array([keep], np.int64),
        }
        if self._plan is not None:
            inputs[PASSES] = np.array(self._plan)
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        self._binding.bind_output(LOGITS)
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()[-1].numpy()[0].astype(np.float32)
