"""The loss: cross-entropy of the supervised next tokens, summed, so that any split adds up."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm_edge.model import HRMText

from .packing import Rows, attention_mask


@dataclass(frozen=True)
class Outcome:
    """Of n supervised positions: flat indices into the rows, losses (fp32), hits (bool)."""

    select: Tensor
    losses: Tensor
    hits: Tensor


def outcome(model: HRMText, rows: Rows, bp_passes: int | None = None) -> Outcome:
    """Run packed rows and score every supervised position; the head runs on those only."""
    select = rows.select
    mask = attention_mask(rows, model.config.prefix_lm)
    logits = model(
        rows.ids, mask=mask, positions=rows.positions, bp_passes=bp_passes, select=select
    )
    targets = rows.targets.flatten()[select]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    with torch.no_grad():
        hits = logits.argmax(-1) == targets
    return Outcome(select, losses, hits)
