"""Checkpoints of the reference trainer (sapientinc/HRM-Text) as checkpoint directories.

A run of theirs holds `all_config.yaml`, `train_metadata.yaml` and `fsdp2_epoch_N/`, written by
torch.distributed.checkpoint as {"model", "optim"}; the moving averages are the optimizer's
`param_ema`. Tensors are read one at a time; no distributed process group and no GPU is needed.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from hrm_edge.checkpoint import write_checkpoint
from hrm_edge.config import HRMTextConfig, read_json_object
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import EMBEDDING, TOKENIZER, Z_L_INIT
from hrm_edge.prompt import Tokenizer

FOLDER = "fsdp2_epoch_"


def import_reference(
    run: Path,
    out: Path,
    *,
    epoch: int | None = None,
    average: bool = True,
    tokenizer: Path | None = None,
    dtype: str = "bfloat16",
    force: bool = False,
) -> Path:
    """Write `run` (or one of its fsdp2_epoch_N) as a checkpoint directory `out`.

    epoch: None takes the last. average: the moving averages (the released weights) or the raw
    weights. tokenizer: a directory, None = the one the run's metadata names. Raises HRMEdgeError.
    """
    state, run = _state_folder(Path(run), epoch)
    settings, metadata = _yaml(run / "all_config.yaml"), _yaml(run / "train_metadata.yaml")
    shapes = _shapes(state)
    source = _tokenizer_folder(tokenizer, metadata)
    config = _architecture(settings, metadata, shapes, source)
    keys = {name: _stored_key(name, shapes, average, state) for name in config.tensor_shapes()}
    return write_checkpoint(out, config, _tensors(state, keys, shapes), dtype, source, force)


def _state_folder(path: Path, epoch: int | None) -> tuple[Path, Path]:
    if path.name.startswith(FOLDER):
        return path, path.parent
    found = {int(p.name.removeprefix(FOLDER)): p for p in path.glob(FOLDER + "*")}
    if not found:
        raise HRMEdgeError(f"{path}: no {FOLDER}N in it; expected a run of the reference trainer")
    if epoch is not None and epoch not in found:
        known = ", ".join(map(str, sorted(found)))
        raise HRMEdgeError(f"{path}: no {FOLDER}{epoch}; the epochs there are {known}")
    return found[max(found) if epoch is None else epoch], path


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HRMEdgeError(
            f"{path}: missing; the reference trainer writes it beside fsdp2_epoch_N"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HRMEdgeError(f"{path}: cannot be read as YAML ({error})") from None


def _shapes(state: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a distributed checkpoint, by its flattened key."""
    try:
        metadata = FileSystemReader(state).read_metadata()
    except Exception as error:
        raise HRMEdgeError(f"{state}: not a distributed checkpoint ({error})") from None
    entries = metadata.state_dict_metadata.items()
    return {k: tuple(e.size) for k, e in entries if isinstance(e, TensorStorageMetadata)}


def _tokenizer_folder(given: Path | None, metadata: dict[str, Any]) -> Path:
    named = metadata.get("tokenizer_info", {}).get("tokenizer_path", "")
    folder = Path(given or named)
    folder = folder.parent if folder.name == TOKENIZER else folder
    if not (folder / TOKENIZER).is_file():
        raise HRMEdgeError(
            f"no tokenizer.json in {str(folder)!r}; name its folder with --tokenizer"
        )
    return folder


def _architecture(
    settings: dict[str, Any],
    metadata: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    tokenizer: Path,
) -> HRMTextConfig:
    """Their arch and size settings, as conversion/convert_to_hf.py reads them."""
    arch = settings["arch"]
    _check_supported(arch)
    hidden, heads = arch["hidden_size"], arch["num_heads"]
    width = -(-round(arch["expansion"] * hidden * 2 / 3) // 256) * 256
    spread = arch["init_std"] if arch["init_type"] == "fixed_normal" else 1 / math.sqrt(hidden)
    info = metadata.get("tokenizer_info", {})
    start, end, pad = _token_ids(tokenizer, info)
    return HRMTextConfig(
        vocab_size=shapes["model.embed_tokens.embedding_weight"][0],
        hidden_size=hidden,
        intermediate_size=width,
        layers_per_stack=arch["n_layers"] // (2 if arch.get("half_layers") else 1),
        num_attention_heads=heads,
        head_dim=hidden // heads,
        H_cycles=arch["H_cycles"],
        L_cycles=arch["L_cycles"],
        max_position_embeddings=metadata["max_seq_len"],
        embedding_scale=1 / spread,
        initializer_range=spread,
        rope_theta=float(arch["rope_theta"]),
        rms_norm_eps=float(arch["norm_eps"]),
        prefix_lm=arch.get("attn_type", "prefixlm") == "prefixlm",
        pad_token_id=pad,
        bos_token_id=start,
        eos_token_ids=(end,),
    )


def _check_supported(arch: dict[str, Any]) -> None:
    expected: dict[str, Callable[[Any], bool]] = {
        "name": lambda v: "HierarchicalReasoningModel" in str(v),
        "norm_type": lambda v: v == "pre",
        "pos_emb_type": lambda v: v == "rope",
        "H_override": lambda v: not v,
    }
    for key, fits in expected.items():
        if not fits(arch.get(key)):
            raise HRMEdgeError(
                f"all_config.yaml: arch.{key} is {arch.get(key)!r}; only HRM-Text with pre-norm, "
                "rotary positions and equal stacks can be imported"
            )


def _token_ids(folder: Path, info: dict[str, Any]) -> tuple[int, int, int | None]:
    """Ids of the prompt's start, the answer's end and padding."""
    tokenizer = Tokenizer(folder)
    start = tokenizer.encode(info.get("boq", "<|im_start|>"))
    end = tokenizer.encode(info.get("eoa", "<|box_end|>"))
    if len(start) != 1 or len(end) != 1:
        raise HRMEdgeError(f"{folder}: its tokenizer has no single token for {info}")
    settings = folder / "tokenizer_config.json"
    pad = read_json_object(settings).get("pad_token") if settings.is_file() else None
    padding = tokenizer.encode(pad["content"] if isinstance(pad, dict) else pad) if pad else []
    return start[0], end[0], padding[0] if len(padding) == 1 else None


def _their_name(name: str) -> str:
    """The reference module's name of a tensor of the hub's form."""
    if name == EMBEDDING:
        return "embed_tokens.embedding_weight"
    name = name.replace(Z_L_INIT, "model.zL_init")
    for stack in ("L", "H"):
        name = name.replace(f"model.{stack}_module.", f"model.{stack}_level.core.")
    return name


def _stored_key(name: str, shapes: dict[str, tuple[int, ...]], average: bool, state: Path) -> str:
    theirs = _their_name(name)
    weight, mean = f"model.{theirs}", f"optim.state.{theirs}.param_ema"
    if not average or name == Z_L_INIT:  # a buffer: it has no average
        mean = weight
    if mean not in shapes:
        hint = "; --no-ema takes the raw weights" if weight in shapes and average else ""
        raise HRMEdgeError(f"{state}: holds no {mean}{hint}")
    return mean


def _tensors(
    state: Path, keys: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, key in keys.items():
        held = {key: torch.empty(shapes[key])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a world of one is meant
            load(held, checkpoint_id=state, no_dist=True)
        yield name, held[key].numpy()
