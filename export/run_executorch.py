"""Runs an ExecuTorch bundle over whole samples, as a device would: see run_onnx.py.

After the prefill each token of the answer is a call of its own, as the program wants it.
"""

import numpy as np

from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.pte import MODEL, Program, Unavailable
from hrm_edge.samples import Sample


class Runner:
    """A loaded model.pte, whose KV cache has room for the bundle's max_seq_len."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises Unavailable where memory, or an operator's library, is missing."""
        manifest, room = bundle.manifest, memory.available()
        need = manifest.kv_cache.bytes_per_token * manifest.max_seq_len
        if room is not None and need > room:
            raise Unavailable(
                f"{bundle.path / MODEL}: its KV cache needs {need / 2**30:.1f} GiB, "
                f"{room / 2**30:.1f} are available; give --max-seq-len at export to need less"
            )
        made_by = manifest.made_by.get("executorch", "an unknown version")
        self._program = Program(bundle.path / MODEL, made_by, None)

    def logits(self, sample: Sample) -> np.ndarray:
        """Logits [len(answer), V], float32: row i predicts the answer's token i."""
        rows, length = [self._program(sample.prompt, 0)], len(sample.prompt)
        for i, token in enumerate(sample.answer[:-1]):
            rows.append(self._program([token], length + i))
        return np.stack(rows)
