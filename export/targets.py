"""What can be made of a checkpoint: a frozen value for each file format, with only what it knows.

A target says which numbers each tensor is stored in (`format`), since its kernels are what limits
the choice; quantize/plan.py finds the codes, and the writer of the target lays them out. What a
target cannot do is refused here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypedDict, Unpack

from hrm_edge.config import KV_SHARES, ORT_HEAD_DIM, HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import EMBEDDING, HEAD, is_linear

from .recipe import HQQ, RTN, Calibration, Format, Method, Recipe, method_name, one_of

XNNPACK_GROUP = 32  # XNNPACK's 4-bit linears take groups of a multiple of this
GGML_BLOCK = 32  # weights that share a scale in Q4_0, Q5_0 and Q8_0


@dataclass(frozen=True)
class OnnxTarget:
    """model.onnx for ONNX Runtime and onnxruntime-genai. Its kernels take every recipe."""

    name: ClassVar[str] = "onnx"
    recipe: Recipe = field(default_factory=Recipe)

    def check(self, config: HRMTextConfig, max_seq_len: int) -> None:
        """Raise HRMEdgeError for a model that the kernels cannot run."""
        if config.head_dim % ORT_HEAD_DIM:
            raise HRMEdgeError(
                f"head_dim is {config.head_dim}; ONNX Runtime's attention needs a multiple of "
                f"{ORT_HEAD_DIM} (-t executorch and -t gguf take others)"
            )

    def format(self, config: HRMTextConfig, name: str, bits: int | None = None) -> Format:
        """How the tensor `name` is stored; `bits` where a linear has others than the recipe's."""
        r = self.recipe
        symmetric = getattr(r.method, "symmetric", True)
        if is_linear(name):
            bits = bits or r.bits
            return self._format(bits, r.group_size, symmetric=bits == 8 or symmetric)
        if name == HEAD:
            return self._format(r.head_bits, r.group_size)
        if name != EMBEDDING:
            return Format(32, dtype=r.numpy_dtype)
        if not config.tie_word_embeddings:
            return self._format(r.embedding_bits, r.group_size)
        group = r.group_size
        return self._format(r.head_bits, dividing(group, config) if r.head_bits < 16 else group)

    def _format(self, bits: int, group_size: int, symmetric: bool = True) -> Format:
        return Format(bits, group_size, self.recipe.numpy_dtype, symmetric)


@dataclass(frozen=True)
class ExecutorchTarget:
    """model.pte for ExecuTorch with XNNPACK.

    `contexts` are lengths below max_seq_len for which there is a shorter program, with a smaller
    KV cache over the same weights. `kv_share` and `l_cycles` are built into the program, where an
    ONNX bundle takes them at run time: which passes share cache slots, and how many L passes of
    each H cycle an answer's tokens take (None: all). `norm_op` calls MagicNorm as the C++ op
    hrm::magic_norm, whose library a runtime then needs (to_executorch/magic_norm_op.py).
    """

    name: ClassVar[str] = "executorch"
    recipe: Recipe = field(default_factory=lambda: Recipe(kv_bits=32))
    contexts: tuple[int, ...] = ()
    norm_op: bool = False
    kv_share: str = "none"
    l_cycles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        r = self.recipe
        if r.dtype != "fp32":
            raise HRMEdgeError(f"dtype is {r.dtype!r}; an ExecuTorch bundle computes in fp32")
        if r.kv_bits != 32 or r.kv_h_bits is not None:
            raise HRMEdgeError(
                f"kv_bits is {r.kv_bits}; in an ExecuTorch bundle the KV cache has 32 bits "
                "(leave out --kv-bits), in an ONNX bundle 8 or 4 are possible"
            )
        if r.calibrate_kv:
            raise HRMEdgeError("calibrate_kv is of a quantized KV cache, which -t onnx alone has")
        symmetric_only("-t executorch: XNNPACK's 4-bit linears have", r.method)
        one_of("kv_share", self.kv_share, KV_SHARES)
        object.__setattr__(self, "contexts", tuple(sorted(set(self.contexts))))

    def check(self, config: HRMTextConfig, max_seq_len: int) -> None:
        """Raise HRMEdgeError for contexts that are not shorter, or a plan that cannot be."""
        config.plan(self.l_cycles)
        found = self.contexts
        if found and not 2 <= found[0] <= found[-1] < max_seq_len:
            raise HRMEdgeError(
                f"contexts are {', '.join(map(str, found))}, expected 2 to {max_seq_len - 1} (less "
                "than max_seq_len)"
            )

    def format(self, config: HRMTextConfig, name: str, bits: int | None = None) -> Format:
        """As OnnxTarget. Raises HRMEdgeError if no group that XNNPACK takes divides the rows."""
        r = self.recipe
        columns = row_length(config, name)
        if name == EMBEDDING:
            group = row_group(name, columns, r.group_size, r.embedding_bits)
            return Format(r.embedding_bits, group)
        if name != HEAD and not is_linear(name):
            return Format(32)
        bits = (bits or r.bits) if is_linear(name) else r.head_bits
        group = row_group(name, columns, r.group_size, bits)
        scales = "bfloat16" if bits == 4 else "float32"
        return Format(bits, group, positive=True, scales=scales)


@dataclass(frozen=True)
class FileType:
    """Bits of a GGUF file's linears, head and embedding; 16 of `dtype`."""

    linear: int
    head: int
    embedding: int
    dtype: str = "float16"


# As in llama.cpp's own presets the head of a file below 8 bits is finer than its linears.
FILE_TYPES = {
    "f32": FileType(32, 32, 32),
    "f16": FileType(16, 16, 16),
    "bf16": FileType(16, 16, 16, "bfloat16"),
    "q8_0": FileType(8, 8, 8),
    "q5_0": FileType(5, 8, 5),
    "q4_0": FileType(4, 8, 4),
}


@dataclass(frozen=True)
class GGUFTarget:
    """model.gguf for llama.cpp; `type` is one of FILE_TYPES.

    Unless `causal` is set, the file of a PrefixLM model tells llama.cpp not to mask: a prompt that
    is one batch is then read as a prefix, and tokens that follow one at a time see all before them.
    """

    name: ClassVar[str] = "gguf"
    type: str = "q4_0"
    method: Method = field(default_factory=RTN)
    rotate: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    causal: bool = False

    def __post_init__(self) -> None:
        one_of("GGUF type", self.type, tuple(FILE_TYPES))
        symmetric_only("-t gguf: Q4_0 and Q8_0 have", self.method)
        if self.method != RTN() and self.type not in ("q4_0", "q8_0"):
            raise HRMEdgeError(
                f"method is {method_name(self.method)!r}; in a GGUF file it needs --type q4_0 or "
                f"q8_0, not {self.type}"
            )

    @property
    def recipe(self) -> Recipe:
        """What the plan needs to know, in the terms of the other targets."""
        bits = self._type.linear if self._type.linear in (4, 8) else 32
        return Recipe(
            bits,
            GGML_BLOCK,
            kv_bits=32,
            method=self.method,
            rotate=self.rotate,
            calibration=self.calibration,
        )

    @property
    def _type(self) -> FileType:
        return FILE_TYPES[self.type]

    def check(self, config: HRMTextConfig, max_seq_len: int) -> None:
        """llama.cpp runs every architecture."""

    def format(self, config: HRMTextConfig, name: str, bits: int | None = None) -> Format:
        """As OnnxTarget; rows that do not divide into blocks are float16."""
        shape = config.tensor_shapes()[name]
        if len(shape) == 1:
            return Format(32)
        kind = self._type
        of_head = name == HEAD or (name == EMBEDDING and config.tie_word_embeddings)
        bits = kind.head if of_head else kind.embedding if name == EMBEDDING else kind.linear
        if bits >= 16:
            return Format(bits, dtype=kind.dtype if bits == 16 else "float32")
        if shape[1] % GGML_BLOCK:
            return Format(16, dtype="float16")
        return Format(bits, GGML_BLOCK, scales="float16", ggml=bits != 4)


Target = OnnxTarget | ExecutorchTarget | GGUFTarget
TARGETS = {kind.name: kind for kind in (OnnxTarget, ExecutorchTarget, GGUFTarget)}


class TargetOptions(TypedDict, total=False):
    """Keywords from which `named_target` makes a target; see Recipe and the targets above."""

    bits: int
    group_size: int
    head_bits: int
    embedding_bits: int
    kv_bits: int | None
    kv_h_bits: int | None
    dtype: str
    method: Method
    rotate: bool
    target_bits: float | None
    calibrate_kv: bool | None
    calibration: Calibration
    recipe: Recipe | None
    gguf_type: str
    norm_op: bool
    contexts: Sequence[int]
    kv_share: str
    l_cycles: Sequence[int] | None


APART = ("norm_op", "contexts", "kv_share", "l_cycles")  # of ExecutorchTarget alone
AT_RUN_TIME = ("kv_share", "l_cycles")  # of an ONNX bundle
_ANY = ("onnx", "executorch", "gguf")
_CODES = ("onnx", "executorch")
OWNERS = {  # option -> the targets that know it
    **dict.fromkeys(("method", "rotate", "calibration"), _ANY),
    **dict.fromkeys(("bits", "group_size", "head_bits", "embedding_bits", "kv_bits"), _CODES),
    **dict.fromkeys(("recipe", "target_bits"), _CODES),
    **dict.fromkeys(("dtype", "calibrate_kv", "kv_h_bits"), ("onnx",)),
    **dict.fromkeys(APART, ("executorch",)),
    "gguf_type": ("gguf",),
}


def refuse_foreign(option: str, target: str, shown: str | None = None) -> None:
    """Raise HRMEdgeError, calling it `shown`, if `option` says nothing to `target`."""
    if target not in OWNERS[option]:
        owners = " and ".join(f"-t {owner}" for owner in OWNERS[option])
        raise HRMEdgeError(
            f"{shown or option} does not apply to -t {target}; it is of {owners}"
            + _instead(option, target)
        )


def _instead(option: str, target: str) -> str:
    if option in AT_RUN_TIME:
        return "; an ONNX bundle takes it when it is run" if target == "onnx" else ""
    return "; --type says how its tensors are stored" if target == "gguf" else ""


def named_target(name: str, **options: Unpack[TargetOptions]) -> Target:
    """The target called `name` with `options`. Raises HRMEdgeError for one that is not its own."""
    one_of("target", name, tuple(TARGETS))
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    for flag in ("rotate", "norm_op", "contexts"):  # left out, they say the same
        if not given.get(flag, True):
            del given[flag]
    for option in given:
        if option not in OWNERS:
            raise HRMEdgeError(f"unknown option {option!r}; known are {', '.join(OWNERS)}")
        refuse_foreign(option, name)
    if name == "gguf":
        return GGUFTarget(given.pop("gguf_type", GGUFTarget.type), **given)
    apart = {k: given.pop(k) for k in APART if k in given}
    recipe = given.pop("recipe", None)
    if recipe is None:
        given.setdefault("kv_bits", 32 if name == "executorch" else Recipe.kv_bits)
        recipe = Recipe(**given)
    elif given:
        raise HRMEdgeError(f"recipe and {next(iter(given))} are both given; put it in the recipe")
    if name == "onnx":
        return OnnxTarget(recipe)
    for listed in ("contexts", "l_cycles"):
        if listed in apart:
            apart[listed] = tuple(apart[listed])
    return ExecutorchTarget(recipe, **apart)


def with_calibration(target: Target, calibrate_kv: bool) -> Target:
    """`target` with that choice made, which its recipe leaves open."""
    if isinstance(target, GGUFTarget):
        return target
    return replace(target, recipe=replace(target.recipe, calibrate_kv=calibrate_kv))


def symmetric_only(what: str, method: Method) -> None:
    """Raise HRMEdgeError if `method` makes zero points, which not all kernels have."""
    if isinstance(method, HQQ) or not method.symmetric:
        raise HRMEdgeError(
            f"method is {method_name(method)!r}; {what} no zero points: use rtn or gptq, or -t onnx"
        )


def row_length(config: HRMTextConfig, name: str) -> int:
    """Columns of the tensor `name`; a tied head has those of the embedding."""
    shapes = config.tensor_shapes()
    return shapes.get(name, shapes[EMBEDDING])[-1]


def dividing(group_size: int, config: HRMTextConfig) -> int:
    """The largest group size up to `group_size` that pads no row: a table's rows are not padded."""
    columns = config.hidden_size
    while columns % group_size:
        group_size //= 2
    if group_size < 16:
        raise HRMEdgeError(
            f"hidden_size is {columns}; a tied embedding needs a multiple of 16 "
            "to be quantized (--head-bits 32 leaves it as it is)"
        )
    return group_size


def row_group(name: str, columns: int, group_size: int, bits: int) -> int:
    """XNNPACK's weights that share a scale: a row of 8 bits, a group that divides it of 4."""
    if bits != 4:
        return columns
    group = max(group_size, XNNPACK_GROUP)
    while columns % group and group > XNNPACK_GROUP:
        group //= 2
    if columns % group:
        raise HRMEdgeError(
            f"{name} has rows of {columns}; 4 bits in ExecuTorch need a multiple of "
            f"{XNNPACK_GROUP} (8 bits take any: --bits 8 --embedding-bits 8 --head-bits 8)"
        )
    return group
