"""One runtime on one model, measured: ours, and those that take our files as they are.

python -m benchmarks.engines hrm-edge BUNDLE --depths 0,1000
python -m benchmarks.engines llama.cpp MODEL.gguf --depths 0,1000
"""

import importlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.llamacpp import Llama
from benchmarks.measure import Runtime, measure
from hrm_edge.bundle import Bundle
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.session.opening import open_session


def ours(path: Path, context: int, threads: int | None) -> Runtime:
    """hrm-edge's own session on a bundle, whichever its target."""
    return open_session(Bundle.open(path), Loading(threads=threads, max_context=context))


class LlamaCpp:
    """The prebuilt llama.cpp on a GGUF file. It reads prompts causally here, as it does itself."""

    def __init__(self, path: Path, context: int, threads: int | None, flash: str = "auto") -> None:
        self._llama = Llama(path, context, threads, flash=flash)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start anew with `ids`; logits [V] of the last one."""
        return self._llama.prefill(ids, causal=True)

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits [len(ids), V]."""
        return self._llama.decode(ids)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self._llama.rewind(self._llama.length - n)


class LlamaCppPython:
    """llama.cpp as `pip install llama-cpp-python` compiles it for this very processor."""

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        package: Any = importlib.import_module("llama_cpp")
        self._llama = package.Llama(
            str(path),
            n_ctx=context,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0,
            flash_attn=True,
            verbose=False,
        )
        package.llama_set_causal_attn(self._llama._ctx.ctx, True)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start anew with `ids`; logits [V] of the last one."""
        self._llama.reset()
        return self.decode(ids)[-1]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits of the last one, [1, V]."""
        self._llama.eval(ids)
        logits = self._llama._ctx.get_logits_ith(-1)
        return np.ctypeslib.as_array(logits, (1, self._llama.n_vocab())).copy()

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens: eval forgets what lies beyond n_tokens."""
        self._llama.n_tokens -= n


class Genai:
    """Stock onnxruntime-genai on a bundle."""

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        self._og: Any = importlib.import_module("onnxruntime_genai")  # ships without types
        config = self._og.Config(str(path))
        if threads:
            options = {"intra_op_num_threads": threads}
            overlay = {"model": {"decoder": {"session_options": options}}}
            config.overlay(json.dumps(overlay))
        self._model, self._context = self._og.Model(config), context
        self._generator: Any = None
        self._length = 0

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """A new generator that reads `ids`; logits [V] of the last position."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._context, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)
        return self.decode(ids)[-1]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`; logits of the last position, [1, V]."""
        self._generator.append_tokens(np.array([ids], np.int32))
        self._length = self._generator.token_count()
        return self._generator.get_logits()[0, -1:]

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self._length -= n
        self._generator.rewind_to(self._length)


class Transformers:
    """transformers on a checkpoint, in float32 with its dynamic cache."""

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        import torch
        from transformers import HrmTextForCausalLM

        if threads:
            torch.set_num_threads(threads)
        self._torch = torch
        self._model = HrmTextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._cache: Any = None

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Read `ids` as the prefix; logits [V] of the last position."""
        self._cache = None
        kinds = self._torch.ones(1, len(ids), dtype=self._torch.int64)
        return self._run(ids, token_type_ids=kinds, logits_to_keep=1)[-1]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids`, causally; logits [len(ids), V]."""
        return self._run(ids)

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens."""
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
        return found.logits[0].numpy()


RUNTIMES: dict[str, Callable[[Path, int, int | None], Runtime]] = {
    "hrm-edge": ours,
    "llama.cpp": LlamaCpp,
    "llama.cpp, flash attention off": partial(LlamaCpp, flash="off"),
    "llama.cpp, compiled here": LlamaCppPython,
    "onnxruntime-genai": Genai,
    "transformers": Transformers,
}


@click.command()
@click.argument("runtime", type=click.Choice(list(RUNTIMES)))
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--depths", default="0", help="Context lengths to measure at, joined by commas.")
@click.option("--decode", default=16, help="Tokens to decode at each depth.")
@click.option("--threads", type=int, help="Default: the runtime's own choice.")
def main(runtime: str, path: Path, depths: str, decode: int, threads: int | None) -> None:
    """Measure RUNTIME on PATH and print JSON."""
    lengths = [int(d) for d in depths.split(",")]
    report = measure(lambda context: RUNTIMES[runtime](path, context, threads), lengths, decode)
    print(json.dumps(report.to_dict(), indent=1))


if __name__ == "__main__":
    main()
