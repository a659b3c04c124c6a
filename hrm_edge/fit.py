"""Will a bundle fit, and with how long a context? The only place that says.

Weights, KV cache and activations stand against the memory that can be had.

An estimate, made before anything is loaded. Packed weights take about what their file takes; the
cache is exact; activations are those of the widest moment of a prefill.
"""

from dataclasses import dataclass

from hrm_edge import memory
from hrm_edge.bundle import Bundle, Manifest
from hrm_edge.errors import HRMEdgeError

WEIGHTS = (".data", ".pte", ".ptd")  # ends of the names of files that hold them


@dataclass(frozen=True)
class Need:
    """Bytes that a session will hold with its context full."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.kv_cache + self.activations


def need(manifest: Manifest, context: int, rows: int = 1) -> Need:
    """What `rows` of `context` tokens of prompt and answer will take, prompts as long as can be."""
    weights = sum(f.size for name, f in manifest.files.items() if name.endswith(WEIGHTS))
    cache = rows * context * manifest.kv_cache.bytes_per_token
    return Need(weights, cache, _activations(manifest, context))


def _activations(manifest: Manifest, context: int) -> int:
    """Per token the projections of a block and its residuals, float32, three times, since ONNX
    Runtime's arena grows by powers of two (measured at HRM-Text-1B's shape: 2.5 times at 512
    tokens, 3.1 at 2048); per pair of tokens the scores of all heads, which it holds where it does
    not know the size of the processor's cache, as on ARM. All is given back after the prompt."""
    model = manifest.model
    per_token = 2 * model.intermediate_size + 6 * model.attention_size + 4 * model.hidden_size
    scores = context * context * model.num_attention_heads
    return 4 * (3 * context * per_token + scores + model.vocab_size)


def largest_context(manifest: Manifest, room: int, rows: int = 1) -> int:
    """The longest context of `rows` for which `room` bytes do; 0 if not even two tokens fit."""
    low, high = 0, manifest.max_seq_len
    while low < high:
        middle = (low + high + 1) // 2
        fits = need(manifest, middle, rows).total <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low if low >= 2 else 0


def choose_context(bundle: Bundle, asked: int | None, room: int | None, rows: int = 1) -> int:
    """The tokens of each row: as asked, else all that the bundle allows and memory holds.

    `room` are the bytes that can be had, if that is known. Raises HRMEdgeError for a context that
    the bundle does not have, or whose KV cache alone is larger than `room`. An ExecuTorch bundle
    commits the cache of a whole program, so its contexts are those of its programs.
    """
    manifest, most = bundle.manifest, bundle.manifest.max_seq_len
    if asked is not None and not 2 <= asked <= most:
        raise HRMEdgeError(
            f"max_context is {asked}, expected 2 to {most} (the bundle's max_seq_len)",
            "max_context",
        )
    pte = manifest.target == "executorch"
    if asked is None and not pte:
        fits = most if room is None else largest_context(manifest, room, rows)
        if fits == 0 and rows > 1:
            raise HRMEdgeError(f"{rows} rows do not fit into memory; use fewer", "rows")
        return max(2, fits)
    if asked is None:
        asked = _largest_program(manifest, room)
    held = manifest.context_for(asked) if pte else asked
    a_token = rows * manifest.kv_cache.bytes_per_token
    fits = held if room is None else max(2, room // a_token)
    if held > fits:
        wanted, have = held * a_token / 2**30, (room or 0) / 2**30
        less = "--context" if pte else "fewer --kv-bits"
        of = f" in {rows} rows" if rows > 1 else ""
        raise HRMEdgeError(
            f"max_context {held}{of} needs {wanted:.1f} GiB for its KV cache, {have:.1f} GiB are "
            f"available; at most {fits} fit ({less} at export needs less)",
            "max_context",
        )
    return asked


def _largest_program(manifest: Manifest, room: int | None) -> int:
    """The longest context of an ExecuTorch bundle that fits into `room`, else its shortest."""
    contexts = (*manifest.contexts, manifest.max_seq_len)
    fitting = (n for n in contexts if room is None or need(manifest, n).total <= room)
    return max(fitting, default=contexts[0])


def shortage(bundle: Bundle, max_context: int | None, rows: int = 1) -> str | None:
    """One line about what does not fit and what would, or None if all is well or not known.

    Without `max_context` the runtime takes what fits, so that only the weights can be too large.
    """
    manifest, room = bundle.manifest, memory.available()
    if max_context is not None and not 2 <= max_context <= manifest.max_seq_len:
        return None  # choose_context refuses it
    wanted = need(manifest, max_context or 2, rows)
    if room is None or wanted.total <= room:
        return None
    fits = largest_context(manifest, room, rows)
    if fits:
        then = f"--max-context {fits} would fit"
        then += "" if manifest.kv_cache.bits == 4 else ", or fewer --kv-bits at export"
    else:
        then = "free some memory, or export with fewer --bits"
    return (
        f"{bundle.path}: needs about {_mib(wanted.total)} (weights {_mib(wanted.weights)}, KV "
        f"cache {_mib(wanted.kv_cache)}, activations {_mib(wanted.activations)}), {_mib(room)} are "
        f"available; {then}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
