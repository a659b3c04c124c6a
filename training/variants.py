"""The models that HRM-Text is compared with: a plain transformer, and HRM without its exit norm."""

import torch
from torch import Tensor, nn

from hrm_edge.config import HRMTextConfig
from hrm_edge.model import HRMText, KVCache, Mask, Rotary, Stack, rms_norm

from .config import Variant


class PlainRecurrence(nn.Module):
    """A plain pre-norm transformer in the place of the loop: one stack, applied once.

    The stack is called L_module, so that the names of parameters follow the same pattern.
    """

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.z_L_init: Tensor
        self.register_buffer("z_L_init", torch.zeros(config.hidden_size))
        self.L_module = Stack(config)
        self.H_module = nn.Module()
        self.H_module.layers = nn.ModuleList()

    def forward(
        self, ids: Tensor, rotary: Rotary, mask: Mask, cache: KVCache | None, bp_passes: int | None
    ) -> Tensor:
        """ids [B, S] -> [B, S, D]; `bp_passes` has no meaning here."""
        x = self.embed_tokens(ids) * self.config.embedding_scale
        return self.L_module(torch.zeros_like(x), x, rotary, mask, cache, 0)


class OpenStack(Stack):
    """A stack that returns its residual as it is; only the last H pass is normed, by the head."""

    def exit(self, x: Tensor, skip: Tensor) -> Tensor:
        return x + skip


class OpenHRMText(HRMText):
    """HRM-Text without the exit norm, except before the head (as any pre-norm model has it)."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__(config)
        self.model.L_module, self.model.H_module = OpenStack(config), OpenStack(config)

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(rms_norm(hidden, self.config.rms_norm_eps))


def build_model(config: HRMTextConfig, variant: Variant = "hrm", seed: int = 0) -> HRMText:
    """A freshly initialized model; the same seed gives the same weights."""
    model = OpenHRMText(config) if variant == "no_exit_norm" else HRMText(config)
    if variant == "plain":
        model.model = PlainRecurrence(config)  # type: ignore[assignment]
    model.init_weights(torch.Generator().manual_seed(seed))
    return model
