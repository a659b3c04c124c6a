"""The loss: cross-entropy of the supervised next tokens, summed, so that any split adds up.

Against the data's tokens, or against a teacher's distributions over them (distillation, Hinton et
al., arXiv 1503.02531, at temperature 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    kv_share: str = "none",
    smoothing: float = 0.0,
) -> Outcome:
    """Run packed rows and score every supervised position; the head runs on those only.

    `early` runs the first H cycle once more, with gradients through all of its passes: the horizon
    of `bp_passes` reaches them late or never, and cutting it elsewhere would change the main loss.
    `plan` says which passes run in the main loss (None = all). With a `kv_share` the rows are read
    twice: first by all passes, as a device reads a prompt; then answers attend to what that has
    left of their prompts in shared slots. Of an answer's own tokens each pass sees its own keys:
    those of a later pass are not there yet when all tokens are read at once.
    `smoothing` is the share of each target that is spread evenly over the vocabulary.
    With a `teacher` the losses are those against its distributions; hits stay the data's.
    """
    select, mask = rows.select, attention_mask(rows, model.config.prefix_lm)
    targets = rows.targets.flatten()[select]
    inputs = {"mask": mask, "positions": rows.positions, "select": select}
    run: Any = partial(model, rows.ids, **inputs)
    if kv_share == "none":
        logits = run(bp_passes=bp_passes, plan=plan)
    else:
        cache = _SharedPrompt(model.config.shared_slots(kv_share), rows.prefix)
        exact = run(bp_passes=bp_passes, cache=cache)
        cache.full = True
        shared = run(bp_passes=bp_passes, plan=plan, cache=cache)
        of_prompt = rows.prefix.flatten()[select, None]  # its last token says the answer's first
        logits = torch.where(of_prompt, exact, shared)
    with torch.no_grad():
        hits = logits.argmax(-1) == targets
        expected = targets if teacher is None else teacher(rows.ids, **inputs).float().softmax(-1)
    loss = partial(F.cross_entropy, reduction="none", label_smoothing=smoothing)
    losses, first = loss(logits.float(), expected), None
    if early:
        shallow = run(plan=model.config.plan(h_cycles=1))
        first = loss(shallow.float(), expected)
    return Outcome(select, losses, hits, first)


class _SharedPrompt:
    """In a KVCache's place: keeps each slot's keys and values, and once `full` gives the prompts'
    from the slots that `kept` names (HRMTextConfig.shared_slots).
    """

    length = 0  # nothing lies before the rows

    def __init__(self, kept: Sequence[int], prefix: Tensor) -> None:
        """`prefix`: bool [B, S], which tokens are of a prompt."""
        self.kept, self.full, self.slots = kept, False, dict[int, tuple[Tensor, Tensor]]()
        self.prefix = prefix[:, None, :, None]

    def update(self, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What a pass that makes k, v [B, heads, S, head_dim] attends to."""
        if not self.full:
            self.slots[slot] = k, v
            return k, v
        of_prompt = self.slots[self.kept[slot]]
        return torch.where(self.prefix, of_prompt[0], k), torch.where(self.prefix, of_prompt[1], v)
