"""What to quantize and how finely; nothing of how it is done."""

from dataclasses import dataclass

from hrm_edge.errors import HRMEdgeError

GROUP_SIZES = (16, 32, 64, 128, 256)
DTYPES = {"fp32": ("float32", 32), "fp16": ("float16", 16)}  # numpy's name, bits
QUANTIZABLE = ("bits", "head_bits", "embedding_bits", "kv_bits")


@dataclass(frozen=True)
class Recipe:
    """Bits of the stacks' linears, of head, embedding and KV cache: 4, 8, or those of `dtype`.

    `group_size` weights along a row share a scale. `dtype`, fp32 or fp16, is that of activations,
    scales, and whatever is not quantized. Raises HRMEdgeError for any other value.
    """

    bits: int = 4
    group_size: int = 128
    head_bits: int = 8
    embedding_bits: int = 4
    kv_bits: int = 8
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise HRMEdgeError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        allowed = dict.fromkeys(QUANTIZABLE, (4, 8, DTYPES[self.dtype][1]))
        for name, values in (allowed | {"group_size": GROUP_SIZES}).items():
            value = getattr(self, name)
            if value not in values:
                known = ", ".join(map(str, values))
                with_dtype = f" with dtype {self.dtype}" if name in allowed else ""
                raise HRMEdgeError(f"{name} is {value!r}, expected one of {known}{with_dtype}")

    @property
    def numpy_dtype(self) -> str:
        """`dtype` by numpy's name."""
        return DTYPES[self.dtype][0]
