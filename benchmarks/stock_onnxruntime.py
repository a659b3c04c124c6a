"""Golden vectors through onnxruntime and numpy alone: no hrm-edge, so any release can be tried.

    python benchmarks/stock_onnxruntime.py android_demo/golden.json NAME BUNDLE

NAME is one of the vectors' ways that needs no more than a bundle ("32", "8"). The exit code is 1 if
an answer differs. `tests/project/test_oldest_onnxruntime.py` runs it on the oldest release that
docs/bundle.md names for each width of the cache.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

DTYPES = {"float": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8}
CONTEXT = 512


class Bundle:
    """A bundle's graph over buffers of CONTEXT tokens, which it reads and writes in place."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(path / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._binding, self._cache = self._session.io_binding(), {}
        for value in self._session.get_inputs():
            if not value.name.startswith("past_key_values."):
                continue
            dtype = np.dtype(DTYPES[value.type[len("tensor(") : -1]])
            _, heads, _, width = value.shape
            array = self._cache[value.name] = np.zeros((1, heads, CONTEXT, width), dtype)
            buffer = ("cpu", 0, dtype, array.shape, array.ctypes.data)
            self._binding.bind_input(value.name, *buffer)
            self._binding.bind_output(value.name.replace("past_key_values", "present"), *buffer)

    def answer(self, ids: list[int], end: int, most: int) -> list[int]:
        """The greedy answer: the prefix in one call, then a token each."""
        tokens, past = [], 0
        while not tokens or (tokens[-1] != end and len(tokens) < most):
            new = np.array([tokens[-1:] or ids], np.int64)
            past += new.shape[1]
            self._binding.bind_cpu_input("input_ids", new)
            self._binding.bind_cpu_input("attention_mask", np.ones((1, past), np.int64))
            self._binding.bind_output("logits")
            self._session.run_with_iobinding(self._binding)
            tokens.append(int(self._binding.get_outputs()[-1].numpy()[0, -1].argmax()))
        return tokens


def main(golden_file: str, name: str, path: str) -> int:
    """Compare all vectors; the exit code."""
    golden: dict[str, Any] = json.loads(Path(golden_file).read_text(encoding="utf-8"))
    manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
    bundle, (end,) = Bundle(Path(path)), manifest["eos_token_ids"]
    vectors = golden["vectors"]
    same = sum(
        bundle.answer(v["ids"], end, golden["max_tokens"]) == v["answers"][name] for v in vectors
    )
    print(f"onnxruntime {ort.__version__}: {same} of {len(vectors)} answers the same")
    return int(same < len(vectors))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
