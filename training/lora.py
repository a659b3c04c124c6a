"""Low-rank adapters through peft: added to the projections before training, merged after it."""

import torch
from torch import nn

from hrm_edge.errors import HRMEdgeError
from hrm_edge.model import HRMText
from hrm_edge.names import LINEARS

from .config import LoraSettings

PROJECTIONS = tuple(name.rpartition(".")[2] for name in LINEARS)


def add_lora(model: HRMText, settings: LoraSettings, seed: int) -> None:
    """Freeze `model` and give each projection an adapter of rank `settings.rank`, in place.

    Raises HRMEdgeError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise HRMEdgeError("lora.rank needs peft: pip install 'hrm-edge[lora]'") from None
    torch.manual_seed(seed)  # peft draws the adapters from the global generator
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,
        target_modules=list(PROJECTIONS),
    )
    inject_adapter_in_model(config, model)


def merge_lora(model: HRMText) -> None:
    """Add every adapter to its weight and put the plain layers back, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[operator]
                plain = child.get_base_layer()
                assert isinstance(plain, nn.Module)
                setattr(parent, name, plain)
