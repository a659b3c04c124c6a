"""AdamATan2: Adam whose update is atan2(m, sqrt(v)) instead of m / (sqrt(v) + eps).

Invariant to the gradient's scale and free of eps (Everett et al., arXiv 2407.05872, section 4.3).
As the reference trainer has it (models/adam_atan2.py): the first moment's bias correction
multiplies the angle, weight decay is decoupled, and a moving average of the weights sits in the
state. Works on DTensors: every operation is pointwise.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamATan2(Optimizer):
    """State per parameter: step, exp_avg, exp_avg_sq, and param_ema where `ema` > 0."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        ema: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "ema": ema}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self._init_state(parameter, group)

    def _init_state(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        if group["ema"]:
            state["param_ema"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. A parameter without gradient (outside the horizon) is left as it is."""
        assert closure is None, "a closure is not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), lr = self.state[parameter], group["betas"], group["lr"]
        state["step"] += 1
        step = state["step"].item()
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().div_(math.sqrt(1 - beta2**step))
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(torch.atan2(mean, root), alpha=-lr / (1 - beta1**step))
        if "param_ema" in state:
            state["param_ema"].lerp_(parameter, 1 - group["ema"])

    def averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its moving average."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "param_ema" in self.state[parameter]:
                    yield parameter, self.state[parameter]["param_ema"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold their moving averages inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self.averages():
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
