"""The loss: cross-entropy of the supervised next tokens, summed, so that any split adds up.

Against the data's tokens, or against a teacher's distributions over them (distillation, Hinton et
al., arXiv 1503.02531, at temperature 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hrm_edge.model import HRMText

from .packing import Rows, attention_mask


@dataclass(frozen=True)
class Outcome:
    """Of n supervised positions: flat indices into the rows, losses (fp32), hits (bool).

    `early` are the losses after the first H cycle alone, if they were asked for.
    """

    select: Tensor
    losses: Tensor
    hits: Tensor
    early: Tensor | None = None


def outcome(
    model: HRMText,
    rows: Rows,
    bp_passes: int | None = None,
    early: bool = False,
    teacher: HRMText | None = None,
    plan: Sequence[bool] | None = None,
) -> Outcome:
    """Run packed rows and score every supervised position; the head runs on those only.

    `early` runs the first H cycle once more, with gradients through all of its passes: the horizon
    of `bp_passes` reaches them late or never, and cutting it elsewhere would change the main loss.
    `plan` says which passes run in the main loss (None = all).
    With a `teacher` the losses are those against its distributions; hits stay the data's.
    """
    select, mask = rows.select, attention_mask(rows, model.config.prefix_lm)
    targets = rows.targets.flatten()[select]
    inputs = {"mask": mask, "positions": rows.positions, "select": select}
    run = partial(model, rows.ids, **inputs)
    logits = run(bp_passes=bp_passes, plan=plan)
    with torch.no_grad():
        hits = logits.argmax(-1) == targets
        expected = targets if teacher is None else teacher(rows.ids, **inputs).float().softmax(-1)
    losses = F.cross_entropy(logits.float(), expected, reduction="none")
    first = None
    if early:
        shallow = run(plan=model.config.plan(h_cycles=1))
        first = F.cross_entropy(shallow.float(), expected, reduction="none")
    return Outcome(select, losses, hits, first)
