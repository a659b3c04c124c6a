"""Which engine runs which bundle."""

import time
from collections.abc import Sequence
from dataclasses import replace

from hrm_edge import memory
from hrm_edge.bundle import Bundle, KVCache
from hrm_edge.errors import HRMEdgeError
from hrm_edge.fit import choose_context, need

from .loading import CPU, Loading
from .protocol import Session

DEFAULT = Loading()
PAYING = (1, 2, 4, 8)  # rows that are tried where none are asked for
WORTH = 1.1  # times more tokens a second, for twice the rows


def open_session(bundle: Bundle, loading: Loading = DEFAULT) -> Session:
    """A session over `bundle`. Raises HRMEdgeError if it cannot be run so, or does not fit."""
    return open_rows(bundle, replace(loading, rows=1))[0]


def open_rows(bundle: Bundle, loading: Loading) -> Sequence[Session]:
    """`loading.rows` sessions over one loaded `bundle`. Raises as `open_session`."""
    if loading.rows is None:
        return _paying_rows(bundle, loading)
    loading = settled(bundle, loading)
    bundle = as_loaded(bundle, loading)
    manifest, room = bundle.manifest, memory.available() if loading.provider == CPU else None
    if manifest.target == "onnx":
        from .onnx_session import OnnxSession

        length = choose_context(bundle, loading.max_context, room, loading.rows or 1)
        first = OnnxSession(bundle.path, manifest, length, loading)
        rest = range(1, loading.rows or 1)
        return [first, *(OnnxSession(bundle.path, manifest, length, loading, first) for _ in rest)]
    if manifest.target == "executorch":
        from .executorch_session import ExecutorchSession

        _refuse_what_executorch_lacks(bundle, loading)
        length = choose_context(bundle, loading.max_context, room)
        return [ExecutorchSession(bundle.path, manifest, length, loading.threads)]
    raise HRMEdgeError(f"{bundle.path}: no session runs target {manifest.target!r}")


def _paying_rows(bundle: Bundle, loading: Loading) -> Sequence[Session]:
    """As many as memory holds with all of their context, and as make calls worth their time."""
    if bundle.manifest.target != "onnx" or loading.provider != CPU:
        return open_rows(bundle, replace(loading, rows=1))
    found = as_loaded(bundle, settled(bundle, loading))
    context, room = loading.max_context or found.manifest.max_seq_len, memory.available()
    held = [n for n in PAYING if room is None or need(found.manifest, context, n).total <= room]
    try:
        rows = open_rows(bundle, replace(loading, rows=max(held, default=1)))
    except HRMEdgeError as error:
        if error.parameter != "rows":  # a bundle of one row
            raise
        rows = open_rows(bundle, replace(loading, rows=1))
    for row in rows:
        row.start([0])
    best, most = 1, 0.0
    for count in (n for n in PAYING if n <= len(rows)):
        if (rate := _rate(rows[:count])) < WORTH * most:
            break
        best, most = count, rate
    return rows[:best]


def _rate(rows: Sequence[Session]) -> float:
    """Tokens a second of a call with a token for each of `rows`, the best of two."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        rows[0].decode_rows(rows, [0] * len(rows))
        times.append(time.perf_counter() - started)
    return len(rows) / min(times)


def _refuse_what_executorch_lacks(bundle: Bundle, loading: Loading) -> None:
    lacks = {
        "--h-cycles": loading.h_cycles is not None,
        "--provider": loading.provider != CPU,
        "--weight-cache": loading.weight_cache is not None,
        "--draft": loading.draft is not None,
        "--kv-share": loading.kv_share != "none",
        "--l-cycles": loading.l_cycles is not None,
        "--fast": loading.fast,
        "--parallel": loading.rows not in (None, 1),
    }
    given = [option for option, asked in lacks.items() if asked]
    if given:
        raise HRMEdgeError(
            f"{bundle.path}: an ExecuTorch bundle runs all its cycles, on the CPU, a token a call, "
            f"and packs its weights anew; leave out {' and '.join(given)}, or export with -t onnx"
        )


def settled(bundle: Bundle, loading: Loading) -> Loading:
    """`loading` with what `fast` stands for in this bundle. Raises HRMEdgeError if that is unknown.

    What is given explicitly stays.
    """
    if not loading.fast or bundle.manifest.target != "onnx":
        return loading
    found = bundle.manifest.quality.get("fast", {}).get("recommended")
    if found is None:
        raise HRMEdgeError(
            f"{bundle.path}: no plan was measured at its export, so --fast has nothing to take; "
            "give --l-cycles or --kv-share, or export it again",
            "fast",
        )
    plan = found["l_cycles"] if loading.l_cycles is None else loading.l_cycles
    share = found["kv_share"] if loading.kv_share == "none" else loading.kv_share
    return replace(loading, l_cycles=plan and tuple(plan), kv_share=share, fast=False)


def as_loaded(bundle: Bundle, loading: Loading) -> Bundle:
    """`bundle` as `loading` has it: fewer cycles and shared slots take fewer bytes a token.

    Raises HRMEdgeError for slots that cannot be shared, and for a plan that cannot be.
    """
    bundle.manifest.model.plan(loading.l_cycles, loading.h_cycles)
    manifest, share = bundle.manifest, loading.kv_share
    cache = manifest.kv_cache
    if share != "none" and manifest.target == "onnx":
        if cache.fitted or (cache.fitted is None and 4 in (cache.bits, cache.h_bits)):
            raise HRMEdgeError(
                f"{bundle.path}: the scales of its KV cache are fitted to each slot, so slots "
                "cannot be shared; export with --no-calibrate-kv, or --kv-bits 8",
                "kv_share",
            )
        shared = KVCache.of(manifest.model, cache.bits, cache.h_bits, False, share)
        cache = replace(cache, bytes_per_token=shared.bytes_per_token)
        bundle = replace(bundle, manifest=replace(manifest, kv_cache=cache))
    return at_depth(bundle, loading.h_cycles)


def at_depth(bundle: Bundle, h_cycles: int | None) -> Bundle:
    """`bundle` as it is with only `h_cycles` of its cycles: fewer bytes of cache a token."""
    most, cache = bundle.manifest.model.H_cycles, bundle.manifest.kv_cache
    if h_cycles is None:
        return bundle
    cache = replace(cache, bytes_per_token=cache.bytes_per_token * h_cycles // most)
    return replace(bundle, manifest=replace(bundle.manifest, kv_cache=cache))
