"""Checkpoints: Hugging Face directories of HRM-Text weights, read and written without torch.

A checkpoint is addressed by the names and shapes of the hub's fused form
(`HRMTextConfig.tensor_shapes`); the split form that transformers keeps in memory is joined on the
fly. Tensors are read one at a time from mapped files. Knows nothing of export formats.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hrm_edge import names
from hrm_edge.config import HRMTextConfig, read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import new_directory
from hrm_edge.names import TOKENIZER_FILES

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHARD_BYTES = 4 << 30
SPLIT = {  # fused projection -> the parts it stacks along the rows, in order
    names.GQKV: tuple(f"self_attn.{part}_proj" for part in ("gate", "q", "k", "v")),
    names.GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
    names.OUT: ("self_attn.o_proj",),
}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint directory: every tensor is known to exist with the right shape."""

    path: Path
    config: HRMTextConfig
    parts: dict[str, tuple[str, ...]]  # hub name -> stored tensors, joined along axis 0
    files: dict[str, Path]  # stored tensor -> its file

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Open `path`. Raises HRMEdgeError naming the tensors that are missing or misshapen."""
        path = Path(path)
        if path.is_file():
            raise HRMEdgeError(f"{path}: a file; give the checkpoint's directory")
        if not path.is_dir():
            raise HRMEdgeError(f"{path}: no such checkpoint directory")
        if (path / names.MANIFEST).is_file():
            raise HRMEdgeError(f"{path}: a bundle; give the checkpoint that it was made from")
        config = HRMTextConfig.from_file(path / names.CONFIG)
        files = _tensor_files(path)
        stored = _stored_shapes(files)
        parts, problems = _match(config, stored)
        if problems:
            raise HRMEdgeError(
                f"{path}: the tensors do not fit config.json: " + "; ".join(problems)
            )
        return cls(path, config, parts, files)

    def eos_token_ids(self) -> tuple[int, ...]:
        """What ends an answer: as generation_config.json says, or else config.json.

        Raises HRMEdgeError if an id is none of the vocabulary's.
        """
        path = self.path / names.GENERATION_CONFIG
        named = read_json_object(path).get("eos_token_id") if path.is_file() else None
        if named is None:
            return self.config.eos_token_ids
        ids = named if isinstance(named, list) else [named]
        if not all(isinstance(i, int) and 0 <= i < self.config.vocab_size for i in ids):
            limit = self.config.vocab_size
            raise HRMEdgeError(f"{path}: eos_token_id is {named!r}, expected ids below {limit}")
        return tuple(ids)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors in the hub's form."""
        return tuple(self.parts)

    def tensor(self, name: str) -> np.ndarray:
        """The tensor `name` (hub form) in its stored dtype, copied out of the mapped file."""
        pieces = [self._stored(part) for part in self.parts[name]]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def float32(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of tensor `name` as float32. Raises HRMEdgeError if a value is NaN or infinite."""
        if len(self.parts[name]) == 1:
            weight = self._stored(self.parts[name][0], rows)
        else:
            weight = self.tensor(name)[rows]
        weight = weight.astype(np.float32)
        if not np.isfinite(weight).all():
            count = int(weight.size - np.isfinite(weight).sum())
            raise HRMEdgeError(
                f"{self.path}: {name} holds {count} NaN or infinite values; "
                "the checkpoint is damaged or its training diverged"
            )
        return weight

    def codes(self, name: str, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Stored codes and scales of `name` in groups of `group_size`; None if it holds no such.

        Files in the hub's form never do. Codes are uint8 [N, G, group_size * bits / 8], two of 4
        bits a byte with the first one low; scales float32 [N, G]; the zero point is the middle.
        """
        return None

    def _stored(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        # Opened anew for each tensor: closing unmaps the pages, so memory stays at one tensor.
        with safe_open(self.files[name], framework="np") as file:
            return file.get_slice(name)[rows]


def write_checkpoint(
    out: Path,
    config: HRMTextConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str = "bfloat16",
    tokenizer: Path | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a Hugging Face directory in the hub's form, whole or not at all.

    `tensors` yields (hub name, array of any float dtype); they are stored as `dtype` ("bfloat16",
    "float16" or "float32"). `tokenizer` is a directory whose tokenizer and generation files are
    copied. Raises HRMEdgeError if `out` exists (without `force`) or a tensor does not fit `config`.
    """
    out, stored = Path(out), np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    with new_directory(out, force) as partial:
        shards = [
            _write_shard(partial, i, s) for i, s in enumerate(_shards(tensors, stored, shard_bytes))
        ]
        _name_shards(partial, shards)
        raw = config.to_dict() | {"dtype": dtype}
        (partial / names.CONFIG).write_text(json.dumps(raw, indent=2) + "\n")
        if tokenizer is not None:
            copy_tokenizer(Path(tokenizer), partial)
        Checkpoint.open(partial)
    return out


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy those of TOKENIZER_FILES that `source` has into the directory `target`."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def _tensor_files(path: Path) -> dict[str, Path]:
    index = path / names.WEIGHTS_INDEX
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise HRMEdgeError(f"{index}: weight_map is missing; download the index again")
        shards = sorted(set(weight_map.values()))
        absent = [s for s in shards if not (path / s).is_file()]
        if absent:
            raise HRMEdgeError(f"{path}: missing {', '.join(absent)}, which {index.name} lists")
        return {name: path / shard for name, shard in weight_map.items()}
    single = path / names.WEIGHTS
    if not single.is_file():
        raise HRMEdgeError(f"{path}: no {names.WEIGHTS} and no {names.WEIGHTS_INDEX}")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise HRMEdgeError(
            f"{path}: damaged or truncated safetensors file ({reason}); download it again"
        ) from None


def _stored_shapes(files: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            held = set(file.keys())
            for name in (n for n, p in files.items() if p == path):
                if name not in held:
                    raise HRMEdgeError(f"{path}: lacks {name}, which the index says it holds")
                piece = file.get_slice(name)
                if piece.get_dtype() not in DTYPES:
                    known = ", ".join(DTYPES)
                    raise HRMEdgeError(f"{path}: {name} is {piece.get_dtype()}, expected {known}")
                shapes[name] = tuple(piece.get_shape())
    return shapes


def _match(
    config: HRMTextConfig, stored: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Find each tensor of the hub's form among the stored ones; say what is amiss, by name."""
    parts: dict[str, tuple[str, ...]] = {}
    missing, misshapen = [], []
    for name, shape in config.tensor_shapes().items():
        found = next((c for c in _spellings(name) if all(p in stored for p in c)), None)
        if found is None:
            missing.append(name)
            continue
        parts[name] = found
        expected = (shape[0] // len(found), *shape[1:])
        for part in found:
            if stored[part] != expected:
                misshapen.append(f"{part} is {stored[part]}, expected {expected}")
    used = {part for found in parts.values() for part in found}
    if config.tie_word_embeddings:
        used.add(names.HEAD)  # some writers store the tied copy; the embedding is what counts
    odd = [name for name in stored if name not in used and not missing]
    labelled = {"missing": missing, "misshapen": misshapen, "unexpected": odd}
    return parts, [f"{label} {_listed(names)}" for label, names in labelled.items() if names]


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    yield (name,)
    for fused, split in SPLIT.items():
        if fused in name:
            yield tuple(name.replace(fused, part) for part in split)


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, most: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        stored = np.ascontiguousarray(tensor, dtype=dtype)
        if shard and size + stored.nbytes > most:
            yield shard
            shard, size = {}, 0
        shard[name], size = stored, size + stored.nbytes
    yield shard


def _write_shard(out: Path, number: int, shard: dict[str, np.ndarray]) -> tuple[Path, list[str]]:
    path = out / f"{number}.safetensors"
    try:
        save_file(shard, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps the system's error into its own text
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else 0, str(error)) from error
    return path, list(shard)


def _name_shards(out: Path, shards: list[tuple[Path, list[str]]]) -> None:
    if len(shards) == 1:
        shards[0][0].rename(out / names.WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for i, (path, held) in enumerate(shards, start=1):
        target = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        path.rename(out / target)
        weight_map |= dict.fromkeys(held, target)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / names.WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")
