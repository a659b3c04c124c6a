"""Hypothesis strategies that damage what is well-formed: JSON values, and bytes."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

ABSURD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 64, 10**6, 10**9, 2**63 - 1, 1.5, -0.5, 1e300),
    *("", "x", "object", "float32", "../..", "\x00", "9" * 50, [], {}, [[]], ["x"], [1], [-1]),
    *({"a": 1}, {"": None}, [None] * 3),
)
RAW = ("1e999", "-1e999", "9" * 5000, "NaN", "-Infinity", "[" * 100_000, '{"a":' * 50_000)
MARK = "\u2063raw\u2063"


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside `value`."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = []
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


@st.composite
def damaged_json(draw: st.DrawFn, text: str) -> str:
    """`text`, an object as JSON, with up to three of its values absurd, gone or swapped."""
    value = json.loads(text)
    raw = ""
    for _ in range(draw(st.integers(1, 3))):
        where = places(value)
        if not where:
            break
        container, key = draw(st.sampled_from(where))
        match draw(st.sampled_from(("absurd", "absurd", "gone", "swap", "raw"))):
            case "absurd":
                container[key] = copy.deepcopy(draw(st.sampled_from(ABSURD)))
            case "gone":
                del container[key]
            case "swap":
                other, name = draw(st.sampled_from(where))
                container[key] = json.loads(json.dumps(other[name]))
            case _:
                container[key], raw = MARK, draw(st.sampled_from(RAW))
    return json.dumps(value).replace(json.dumps(MARK), raw)


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes, head: int = 4096) -> bytes:
    """`data` with up to four edits, most of them in its first `head` bytes."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        reach = min(len(found), head) if draw(st.booleans()) else len(found)
        at = draw(st.integers(0, max(0, reach - 1)))
        match draw(st.sampled_from(("flip", "set", "cut", "insert", "drop", "huge"))):
            case "flip" if found:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if found:
                found[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
            case "cut":
                del found[at:]
            case "insert":
                found[at:at] = draw(st.binary(max_size=16))
            case "drop":
                del found[at : at + draw(st.integers(1, 64))]
            case "huge":
                found[at : at + 8] = draw(st.sampled_from((b"\xff" * 8, b"\xff" * 7 + b"\x7f")))
    return bytes(found)
