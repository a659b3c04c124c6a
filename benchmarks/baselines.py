"""The models that HRM-Text is compared with: a plain transformer, and HRM without its exit norm.

Both are made of the product's own blocks, so that nothing but the named part differs.
"""

import torch
from torch import Tensor, nn

from hrm_edge.config import HRMTextConfig
from hrm_edge.model import HRMText, KVCache, Mask, Rotary, Stack, rms_norm


class OneStack(nn.Module):
    """A plain pre-norm transformer in the place of the loop: one stack, applied once."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = Stack(config)
        self.z_L_init: Tensor  # which init_weights draws; nothing here uses it
        self.register_buffer("z_L_init", torch.zeros(config.hidden_size))

    def forward(
        self, ids: Tensor, rotary: Rotary, mask: Mask, cache: KVCache | None, bp_passes: int | None
    ) -> Tensor:
        """ids [B, S] -> [B, S, D]; `bp_passes` has no meaning here."""
        x = self.embed_tokens(ids) * self.config.embedding_scale
        return self.stack(torch.zeros_like(x), x, rotary, mask, cache, 0)


class PlainTransformer(HRMText):
    """`layers_per_stack` layers, each applied once; the head as HRM-Text has it."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__(config)
        self.model = OneStack(config)  # pyright: ignore[reportAttributeAccessIssue]


class OpenStack(Stack):
    """A stack that returns its residual as it is."""

    def exit(self, x: Tensor, skip: Tensor) -> Tensor:
        return x + skip


class OpenHRMText(HRMText):
    """HRM-Text without the exit norms, but for one before the head, as any pre-norm model has."""

    def __init__(self, config: HRMTextConfig) -> None:
        super().__init__(config)
        self.model.L_module, self.model.H_module = OpenStack(config), OpenStack(config)

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(rms_norm(hidden, self.config.rms_norm_eps))
