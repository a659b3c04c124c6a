"""Between a module and a checkpoint directory: load one into a model, write a model as one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hrm_edge.checkpoint import Checkpoint, write_checkpoint
from hrm_edge.config import HRMTextConfig
from hrm_edge.model import HRMText

from .distributed import World, full


def load_model(path: Path) -> HRMText:
    """The model of a checkpoint directory, in fp32. Raises HRMEdgeError if it is damaged."""
    checkpoint = Checkpoint.open(path)
    model = HRMText(checkpoint.config)
    load_weights(model, checkpoint)
    return model


def new_model(config: HRMTextConfig, seed: int = 0) -> HRMText:
    """A freshly initialized model; the same seed gives the same weights."""
    model = HRMText(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def load_weights(model: HRMText, checkpoint: Checkpoint) -> None:
    """Copy every tensor of `checkpoint` into `model`, one at a time."""
    with torch.no_grad():
        for name, target in model.state_dict().items():
            target.copy_(torch.from_numpy(checkpoint.float32(name)))


def save_model(
    out: Path, model: HRMText, tokenizer: Path, dtype: str, world: World, force: bool = False
) -> Path:
    """Write the weights as they are now as a checkpoint directory. All processes call."""
    tensors = _gathered(model)
    if world.is_first:
        write_checkpoint(out, model.config, tensors, dtype, tokenizer, force)
    else:
        for _ in tensors:  # gathering is collective
            pass
    world.barrier()
    return out


def _gathered(model: HRMText) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in model.state_dict().items():
        yield name, full(tensor).detach().float().cpu().numpy()
