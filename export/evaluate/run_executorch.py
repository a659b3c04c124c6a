"""Runs an ExecuTorch bundle over whole samples, as a device would: see run_onnx.py.

After the prefill each token of the answer is a call of its own, as the program wants it.
"""

import numpy as np

from hrm_edge import memory
from hrm_edge.bundle import Bundle
from hrm_edge.fit import need
from hrm_edge.names import program
from hrm_edge.pte import Program, Unavailable
from hrm_edge.samples import Sample


class Runner:
    """A loaded program of a bundle, whose KV cache has room for `longest` tokens at least."""

    def __init__(self, bundle: Bundle, longest: int) -> None:
        """Raises Unavailable where memory, or an operator's library, is missing."""
        manifest, room = bundle.manifest, memory.available()
        context = manifest.context_for(longest)
        wanted = need(manifest, context).kv_cache  # all of it is committed when it is loaded
        if room is not None and wanted > room:
            raise Unavailable(
                f"{bundle.path / program(context, manifest.max_seq_len)}: its KV cache needs "
                f"{wanted / 2**30:.1f} GiB, {room / 2**30:.1f} are available; give --context at "
                "export to need less"
            )
        self._program = Program(bundle.path, manifest, longest, None)

    def logits(self, sample: Sample) -> np.ndarray:
        """Logits [len(answer), V], float32: row i predicts the answer's token i."""
        rows, length = [self._program(sample.prompt, 0)], len(sample.prompt)
        for i, token in enumerate(sample.answer[:-1]):
            rows.append(self._program([token], length + i))
        return np.stack(rows)
