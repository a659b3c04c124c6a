"""Quantization-aware training: linears that compute with their weights as export rounds them.

The forward sees `fake_quantize(weight)`; the gradient goes straight through to the weight itself
(Bengio et al., arXiv 1308.3432). The grid is export's own (round to nearest, symmetric, searched
scales), so exporting the trained weights with the same group size gives the codes trained with.
That needs them saved in float32: rounding to bfloat16 moves weights across the grid's borders.

The starting checkpoint is the teacher: the aim is a model that answers as it does, and its
distributions say more than the data's tokens, which would train an unfinished model on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrm_edge.errors import HRMEdgeError
from hrm_edge.model import HRMText

from .config import QATSettings

CLIP_FACTORS = torch.linspace(0.9, 1.25, 8).tolist()  # as quantize/grid.py has it


class QATLinear(nn.Linear):
    """A linear without bias that computes with its weight rounded to 4 bits."""

    group_size = 128

    def forward(self, input: Tensor) -> Tensor:
        rounded = fake_quantize(self.weight, self.group_size)
        return F.linear(input, self.weight + (rounded - self.weight).detach())


def add_qat(model: HRMText, settings: QATSettings) -> None:
    """Make every linear of both stacks a QATLinear, in place; its state dict stays as it is."""
    if settings.bits != 4:
        raise HRMEdgeError(f"qat.bits is {settings.bits}, expected 4 (or 0 for none)")
    for block in model.blocks():
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.__class__ = QATLinear
                module.group_size = settings.group_size  # type: ignore[assignment]


@torch.no_grad()
def fake_quantize(weight: Tensor, group_size: int) -> Tensor:
    """`weight` [N, K] at the values that export's 4-bit codes stand for."""
    k = weight.shape[1]
    w = F.pad(weight.float(), (0, -k % group_size)).unflatten(1, (-1, group_size))  # [N, G, g]
    peak = w.gather(-1, w.abs().argmax(-1, keepdim=True))
    unit = torch.where(peak != 0, -8 / peak, 0)
    best, values = torch.full_like(peak, -1.0), torch.zeros_like(w)
    for factor in CLIP_FACTORS:
        codes = (w * (unit * factor)).round().clamp(-8, 7)
        wq, qq = (w * codes).sum(-1, keepdim=True), (codes * codes).sum(-1, keepdim=True)
        scale = torch.where(qq > 0, wq / qq, 0)
        better = wq * scale > best
        best = torch.where(better, wq * scale, best)
        values = torch.where(better, codes * scale, values)
    return values.flatten(1)[:, :k].to(weight.dtype)
