"""Runs an ONNX bundle over whole samples, as a device would: a prefill, then the answer's tokens.

What is measured so is what ships, the kernels' own rounding included. The runtime's session is made
for text that grows; here every token is known, so two calls a sample are enough.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hrm_edge.names import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_TO_KEEP, PAST, PRESENT
from hrm_edge.numerics import ort_dtype
from hrm_edge.samples import Sample


class Runner:
    """A loaded model.onnx and cache buffers for `longest` tokens, on `threads` (0: all cores)."""

    def __init__(self, model: Path, longest: int, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for node in self._session.get_inputs():
            if node.name.startswith(PAST):
                _, heads, _, width = node.shape
                cache = np.zeros((1, heads, longest, width), ort_dtype(node.type))
                value = ort.OrtValue.ortvalue_from_numpy(cache)
                self._binding.bind_ortvalue_input(node.name, value)
                self._binding.bind_ortvalue_output(node.name.replace(PAST, PRESENT), value)

    def logits(self, sample: Sample) -> np.ndarray:
        """Logits [len(answer), V], float32: row i predicts the answer's token i."""
        rows = self._call(sample.prompt, 0, keep=1)
        if len(sample.answer) == 1:
            return rows
        later = self._call(sample.answer[:-1], len(sample.prompt), keep=0)
        return np.concatenate([rows, later])

    def _call(self, ids: Sequence[int], past: int, keep: int) -> np.ndarray:
        inputs = {
            INPUT_IDS: np.array([ids], np.int64),
            ATTENTION_MASK: np.ones((1, past + len(ids)), np.int64),
            LOGITS_TO_KEEP: np.array([keep], np.int64),
        }
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        self._binding.bind_output(LOGITS)
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()[-1].numpy()[0].astype(np.float32)


def run(model: Path, samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    """`Runner.logits` of each sample."""
    runner = Runner(model, max(len(sample.inputs) for sample in samples))
    for sample in samples:
        yield runner.logits(sample)
