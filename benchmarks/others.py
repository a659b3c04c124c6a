"""The measurements of benchmarks.ours on other runtimes that take our files as they are.

python -m benchmarks.others onnxruntime-genai BUNDLE --depth 0,1000 --prefill 256
python -m benchmarks.others transformers CHECKPOINT --depth 0,1000 --prefill 256
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.ours import measure_session


class GenaiSession:
    """Stock onnxruntime-genai on a bundle. Its thread count is that of the file."""

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        self._og: Any = importlib.import_module("onnxruntime_genai")  # ships without types
        config = self._og.Config(str(path))
        if threads:
            options = {"intra_op_num_threads": threads}
            overlay = {"model": {"decoder": {"session_options": options}}}
            config.overlay(json.dumps(overlay))
        self._model, self._context = self._og.Model(config), context
        self._generator: Any = None
        self.length, self.max_context = 0, context

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """A new generator that reads `ids`; logits [V] of the last position."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._context, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)
        return self.decode(ids)[-1]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits of the last position, [1, V]."""
        self._generator.append_tokens(np.array([ids], np.int32))
        self.length = self._generator.token_count()
        return self._generator.get_logits()[0, -1:]

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self._generator.rewind_to(self.length - n)
        self.length -= n


class TransformersSession:
    """transformers on a checkpoint, in float32 with its dynamic cache."""

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        import torch
        from transformers import HrmTextForCausalLM

        if threads:
            torch.set_num_threads(threads)
        self._torch = torch
        self._model = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._cache: Any = None
        self.length, self.max_context = 0, context

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Read `ids` as the prefix; logits [V] of the last position."""
        self._cache, self.length = None, 0
        kinds = self._torch.ones(1, len(ids), dtype=self._torch.int64)
        return self._run(ids, token_type_ids=kinds, logits_to_keep=1)[-1]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V]."""
        return self._run(ids)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self.length -= n
        self._cache.crop(-n)

    def _run(self, ids: Sequence[int], **inputs: Any) -> np.ndarray:
        with self._torch.no_grad():
            found = self._model(
                self._torch.tensor([list(ids)]),
                past_key_values=self._cache,
                use_cache=True,
                **inputs,
            )
        self._cache = found.past_key_values
        self.length += len(ids)
        return found.logits[0].numpy()


RUNTIMES = {"onnxruntime-genai": GenaiSession, "transformers": TransformersSession}


@click.command()
@click.argument("runtime", type=click.Choice(list(RUNTIMES)))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--depth", default="0", help="Context lengths to decode at, joined by commas.")
@click.option("--prefill", default=0, help="Prompt tokens to time; 0 times none.")
@click.option("--decode", default=16, help="Tokens to decode at each depth.")
@click.option("--repeats", default=1, help="Prefills to time.")
@click.option("--threads", type=int, help="Default: the runtime's own choice.")
def main(runtime: str, path: Path, depth: str, threads: int | None, **counts: int) -> None:
    """Measure RUNTIME on PATH and print JSON."""
    depths = [int(d) for d in depth.split(",")]
    open_it = RUNTIMES[runtime]
    report = measure_session(lambda context: open_it(path, context, threads), depths, **counts)
    print(json.dumps(report.to_dict(), indent=1))


if __name__ == "__main__":
    main()
