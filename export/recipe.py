"""What to quantize, how finely and by which method; nothing of how it is done."""

from dataclasses import dataclass, field
from pathlib import Path

from hrm_edge.errors import HRMEdgeError

GROUP_SIZES = (16, 32, 64, 128, 256)
DTYPES = {"fp32": ("float32", 32), "fp16": ("float16", 16)}  # numpy's name, bits
QUANTIZABLE = ("bits", "head_bits", "embedding_bits", "kv_bits")
PASSES = ("equal", "sensitivity", "late", "first", "last")
STAGES = ("auto", "linear", "layer", "stack", "model")
ORDERS = ("LH", "HL")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise HRMEdgeError if `value` is none of `allowed`."""
    if value not in allowed:
        known = ", ".join(map(str, allowed))
        raise HRMEdgeError(f"{name} is {value!r}, expected one of {known}")


@dataclass(frozen=True)
class RTN:
    """Round to nearest on grids whose scales are searched for the least squared error."""

    symmetric: bool = True


@dataclass(frozen=True)
class HQQ:
    """Half-quadratic quantization: zero points fitted with a p-norm, without data."""

    iterations: int = 20
    p: float = 0.7
    beta: float = 10.0
    growth: float = 1.01


@dataclass(frozen=True)
class GPTQ:
    """Rounding that minimizes each linear's output error over all passes that use it.

    passes: how much each pass's inputs count (equal; sensitivity: as an error in that pass changes
    the predictions; late: the last cycle four times; first or last only).
    stage: what is quantized before inputs are taken anew (auto: a linear; in a large model, a
    stack); order: which stack comes first. rounds: how often all is done, each time with inputs
    from the model as quantized before. drift: how far weights also make up for the difference
    between these inputs and the original's, 0 to 1.
    """

    symmetric: bool = True
    damping: float = 0.01
    passes: str = "equal"
    stage: str = "auto"
    order: str = "HL"
    rounds: int = 1
    drift: float = 1.0

    def __post_init__(self) -> None:
        one_of("gptq passes", self.passes, PASSES)
        one_of("gptq stage", self.stage, STAGES)
        one_of("gptq order", self.order, ORDERS)
        if not self.damping > 0 or self.rounds < 1:
            raise HRMEdgeError(
                f"gptq damping is {self.damping} and rounds {self.rounds}, expected more than 0"
            )


Method = RTN | HQQ | GPTQ


def method_name(method: Method) -> str:
    """The name by which METHODS, the command line and a manifest know `method`."""
    kind = type(method).__name__.lower()
    return kind if getattr(method, "symmetric", True) else f"{kind}-asym"


@dataclass(frozen=True)
class Format:
    """How one tensor is stored, as the kernel that reads it wants it.

    Below 16 `bits` as codes, `group_size` weights of a row sharing a scale of the type `scales`;
    else as `dtype`. `symmetric`: zero is the middle code. `positive`: no scale is below zero, nor
    zero. `ggml`: rounded as llama.cpp rounds, to whose blocks there is no search.
    """

    bits: int
    group_size: int = 0
    dtype: str = "float32"
    symmetric: bool = True
    positive: bool = False
    scales: str = "float32"
    ggml: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the tensor is stored as codes."""
        return self.bits < 16


@dataclass(frozen=True)
class Calibration:
    """The samples that data-driven choices look at: JSONL `data` (None: the shipped prompts).

    At most `tokens` tokens are used, drawn with `seed`.
    """

    data: Path | None = None
    tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise HRMEdgeError(f"calibration tokens is {self.tokens}, expected 1 or more")


@dataclass(frozen=True)
class Recipe:
    """Bits of the stacks' linears, of head, embedding and KV cache: 4, 8, or those of `dtype`.

    `group_size` weights along a row share a scale. `dtype`, fp32 or fp16, is that of activations,
    scales, and whatever is not quantized. `rotate` turns the residual stream by a Hadamard matrix
    first, which changes nothing but how well weights round. `target_bits` above `bits` gives 8 bits
    to the linears that need them most. `kv_h_bits`, 4 or 8, are those of the H passes' part of the
    KV cache, where they are not `kv_bits`. `calibrate_kv` fits the cache's scales to the
    calibration samples (None: with 4 bits, if the checkpoint has a tokenizer to read samples with).
    Raises HRMEdgeError for any other value.
    """

    bits: int = 4
    group_size: int = 128
    head_bits: int = 8
    embedding_bits: int = 4
    kv_bits: int = 8
    dtype: str = "fp32"
    method: Method = field(default_factory=RTN)
    rotate: bool = False
    target_bits: float | None = None
    calibrate_kv: bool | None = None
    calibration: Calibration = field(default_factory=Calibration)
    kv_h_bits: int | None = None

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
        if self.target_bits is not None and self.bits >= 16:
            raise HRMEdgeError(
                f"target_bits is {self.target_bits}, but bits is {self.bits}, so no linear is "
                "quantized; use bits 4"
            )
        if self.target_bits is not None and not self.bits <= self.target_bits <= 8:
            raise HRMEdgeError(f"target_bits is {self.target_bits}, expected {self.bits} to 8")
        if self.kv_h_bits is not None:
            one_of("kv_h_bits", self.kv_h_bits, (4, 8))
            if self.kv_bits >= 16:
                raise HRMEdgeError(
                    f"kv_h_bits is {self.kv_h_bits}, but kv_bits is {self.kv_bits}, so the KV "
                    "cache is not quantized; use kv_bits 4"
                )

    @property
    def numpy_dtype(self) -> str:
        """`dtype` by numpy's name."""
        return DTYPES[self.dtype][0]

    @property
    def method_name(self) -> str:
        """The method's name in a manifest."""
        return method_name(self.method)

    @property
    def needs_data(self) -> bool:
        """Whether calibration samples are looked at."""
        fitted = bool(self.calibrate_kv) and self.kv_bits < 16
        return isinstance(self.method, GPTQ) or self.target_bits is not None or fitted


METHODS: dict[str, Method] = {"rtn": RTN(), "rtn-asym": RTN(symmetric=False), "hqq": HQQ()}
METHODS |= {"gptq": GPTQ(), "gptq-asym": GPTQ(symmetric=False)}


def named_method(name: str) -> Method:
    """The method of that name. Raises HRMEdgeError naming the known ones."""
    one_of("method", name, tuple(METHODS))
    return METHODS[name]
