"""What to quantize and how finely; nothing of how it is done."""

from dataclasses import dataclass

from hrm_edge.errors import HRMEdgeError

CHOICES = {
    "bits": (4, 8, 32),
    "group_size": (16, 32, 64, 128, 256),
    "head_bits": (4, 8, 32),
    "embedding_bits": (4, 8, 32),
    "kv_bits": (4, 8, 32),
}


@dataclass(frozen=True)
class Recipe:
    """Bits of the stacks' linears, of head, embedding and KV cache; 32 means float32.

    `group_size` weights along a row share a scale. Raises HRMEdgeError for any other value.
    """

    bits: int = 4
    group_size: int = 128
    head_bits: int = 8
    embedding_bits: int = 4
    kv_bits: int = 8

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(map(str, allowed))
                raise HRMEdgeError(f"{name} is {value!r}, expected one of {known}")
