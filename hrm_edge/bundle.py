"""The bundle: the directory that an export writes and a device reads, described by manifest.json.

Knows what is in the manifest and how to check the files against it; knows neither how a graph is
made nor how it is run.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import fastjsonschema

from hrm_edge.config import HRMTextConfig, read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import sha256
from hrm_edge.names import CONFIG, MANIFEST
from hrm_edge.progress import track
from hrm_edge.prompt import ANSWER_END, CONDITIONS, PROMPT_END, PROMPT_START

FORMAT_VERSION = 1
PROMPT_FORMAT = {
    "start": PROMPT_START,
    "end": PROMPT_END,
    "answer_end": ANSWER_END,
    "conditions": CONDITIONS,
}


@dataclass(frozen=True)
class Quantization:
    """How the weights are stored; group_size of them share a scale.

    Bits of 32 or 16 mean `dtype`, which activations and scales have too.

    `mean_bits` is that of the stacks' linears, where some have more than `bits`; `rotated` says
    that the residual stream is turned (export/quantize/rotation.py), which only a comparison needs.
    """

    bits: int
    group_size: int
    head_bits: int
    embedding_bits: int
    dtype: str = "float32"
    method: str = "rtn"
    rotated: bool = False
    mean_bits: float | None = None


@dataclass(frozen=True)
class KVCache:
    """The cache that a session allocates: `slots` K,V pairs of [heads, max_context, head_dim].

    Those of the H passes have values of `h_bits`, if that is not None. `fitted`: each slot has
    scales of its own, fitted to samples, so that no two can share a buffer (None: made before this
    was written down).
    """

    bits: int
    dtype: str  # of a stored element: float32, float16, int8, or uint8 holding two 4-bit values
    slots: int
    bytes_per_token: int
    h_bits: int | None = None
    fitted: bool | None = None

    @classmethod
    def of(
        cls,
        config: HRMTextConfig,
        bits: int,
        h_bits: int | None = None,
        fitted: bool = False,
        kv_share: str = "none",
    ) -> "KVCache":
        """The cache of `config` with values of 32, 16, 8 or 4 bits, its slots shared or not."""
        dtype = {32: "float32", 16: "float16", 8: "int8", 4: "uint8"}[bits]
        widths, kept = config.slot_bits(bits, h_bits), set(config.shared_slots(kv_share))
        size = 2 * config.attention_size * sum(widths[slot] for slot in kept) // 8
        return cls(bits, dtype, config.cache_slots, size, h_bits, fitted)


@dataclass(frozen=True)
class Decoding:
    """How an answer is read: so many L passes in each H cycle, and which slots they share.

    None is all passes; "none" is slots of their own. Both together are exact.
    """

    l_cycles: tuple[int, ...] | None = None
    kv_share: str = "none"

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Decoding":
        """From JSON."""
        plan = raw["l_cycles"]
        return cls(None if plan is None else tuple(plan), raw["kv_share"])


EXACT = Decoding()


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle with its size in bytes and the hex digest of its content."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything a device needs to know before it opens a model file.

    `contexts` are lengths below `max_seq_len`, ascending, for which an ExecuTorch bundle has a
    program of its own, with a smaller KV cache; `decoding` is what its programs are made for.
    """

    target: str
    model: HRMTextConfig
    quantization: Quantization
    kv_cache: KVCache
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    files: Mapping[str, BundleFile]
    made_by: Mapping[str, str]
    quality: Mapping[str, Any] = field(default_factory=dict)
    prompt_format: Mapping[str, Any] | None = field(default_factory=PROMPT_FORMAT.copy)
    contexts: tuple[int, ...] = ()
    decoding: Decoding = EXACT

    def context_for(self, tokens: int) -> int:
        """The shortest of its contexts that holds `tokens`, which max_seq_len does."""
        assert tokens <= self.max_seq_len, (tokens, self.max_seq_len)
        return min(n for n in (*self.contexts, self.max_seq_len) if n >= tokens)

    def write(self, directory: Path) -> None:
        """Write manifest.json into `directory`."""
        raw = {"format_version": FORMAT_VERSION} | asdict(self)
        raw |= {"model": self.model.to_dict()}
        (directory / MANIFEST).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read manifest.json. Raises HRMEdgeError if it is missing, odd, or of a later version."""
        path = directory / MANIFEST
        if not path.is_file():
            raise HRMEdgeError(f"{directory}: {_instead(directory)}")
        raw = read_json_object(path)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            later = isinstance(version, int) and version > FORMAT_VERSION
            then = "update hrm-edge" if later else "export the checkpoint again"
            raise HRMEdgeError(
                f"{path}: format_version is {version!r:.40}, not {FORMAT_VERSION}; {then}"
            )
        model = raw.get("model")
        config = HRMTextConfig.from_dict(model if isinstance(model, dict) else {}, f"{path}: model")
        try:
            _schema()(raw)
        except fastjsonschema.JsonSchemaValueException as error:
            raise _damaged(path, error.message) from None
        manifest = cls(
            target=raw["target"],
            model=config,
            quantization=Quantization(**raw["quantization"]),
            kv_cache=KVCache(**raw["kv_cache"]),
            max_seq_len=raw["max_seq_len"],
            eos_token_ids=tuple(raw["eos_token_ids"]),
            files={n: BundleFile(**f) for n, f in raw["files"].items()},
            made_by=raw["made_by"],
            quality=raw["quality"],
            prompt_format=raw["prompt_format"],
            contexts=tuple(raw.get("contexts", ())),
            decoding=Decoding.of(raw["decoding"]) if "decoding" in raw else EXACT,
        )
        for name, found, expected in manifest._contradictions():
            raise _damaged(path, f"{name} is {found}, expected {expected}")
        return manifest

    def _contradictions(self) -> Iterator[tuple[str, object, object]]:
        """What its parts say of each other and is not so: (key, value, what is expected)."""
        model, cache = self.model, self.kv_cache
        share, positions = self.decoding.kv_share, model.max_position_embeddings
        is_so = KVCache.of(model, cache.bits, cache.h_bits, kv_share=share)
        for name in ("dtype", "slots", "bytes_per_token"):
            found, expected = getattr(cache, name), getattr(is_so, name)
            if found != expected:
                yield f"kv_cache.{name}", found, expected
        if self.max_seq_len > positions:
            yield "max_seq_len", self.max_seq_len, f"at most {positions}, max_position_embeddings"
        if any(i >= model.vocab_size for i in self.eos_token_ids):
            yield "eos_token_ids", list(self.eos_token_ids), f"ids below {model.vocab_size}"
        if any(n >= self.max_seq_len for n in self.contexts):
            yield "contexts", list(self.contexts), f"lengths below max_seq_len {self.max_seq_len}"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the manifest was read and its files are there in full size."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> "Bundle":
        """Open `path`, checking the size of each file and, with `verify`, its sha256.

        Raises HRMEdgeError naming the first file that is missing, truncated or altered.
        """
        path = Path(path)
        if path.is_file():
            raise HRMEdgeError(f"{path}: {_instead(path)}")
        if not path.is_dir():
            raise HRMEdgeError(f"{path}: no such bundle directory; make one with hrm-edge export")
        manifest = Manifest.read(path)
        for name in track(list(manifest.files), "verify") if verify else manifest.files:
            _check(path / name, manifest.files[name], verify)
        return cls(path, manifest)


def describe_files(directory: Path) -> dict[str, BundleFile]:
    """Size and sha256 of each file in `directory` but the manifest, by name."""
    files = sorted(f for f in directory.iterdir() if f.name != MANIFEST)
    return {f.name: BundleFile(f.stat().st_size, sha256(f)) for f in track(files, "hash")}


@functools.cache
def _schema() -> Callable[[object], object]:
    """Checks what a manifest says by the schema that ships with it."""
    text = resources.files("hrm_edge").joinpath("data", "manifest.schema.json").read_text("utf-8")
    return fastjsonschema.compile(json.loads(text))


def _instead(path: Path) -> str:
    """What lies at `path`, where a bundle was expected, and what to do with it."""
    if (path / CONFIG).is_file():
        return f"a checkpoint, not a bundle; hrm-edge export {path} -o BUNDLE makes one"
    if path.suffix == ".gguf":
        return f"a file for llama.cpp; for a bundle, hrm-edge export {path} -o BUNDLE"
    if path.is_file():
        return f"a file; give the bundle's directory, where {MANIFEST} lies beside it"
    return f"not a bundle (it has no {MANIFEST}); see hrm-edge export"


def _damaged(path: Path, reason: str) -> HRMEdgeError:
    shown = reason.removeprefix("data.").removeprefix("data ")
    return HRMEdgeError(f"{path}: damaged manifest ({shown:.300}); export again")


def _check(path: Path, expected: BundleFile, verify: bool) -> None:
    again = "copy or export the bundle again"
    if not path.is_file():
        raise HRMEdgeError(f"{path}: missing from the bundle; {again}")
    size = path.stat().st_size
    if size != expected.size:
        raise HRMEdgeError(f"{path}: {size} bytes, the manifest says {expected.size}; {again}")
    if verify and sha256(path) != expected.sha256:
        raise HRMEdgeError(f"{path}: its content differs from what was exported; {again}")
