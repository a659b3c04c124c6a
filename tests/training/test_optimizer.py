"""AdamATan2 and the schedules against their formulas and torch's own Adam."""

import math

import pytest
import torch

from hrm_edge.training.config import OptimizerSettings
from hrm_edge.training.optimizer import AdamATan2
from hrm_edge.training.schedule import bp_passes, learning_rate


def run(optimizer: torch.optim.Optimizer, weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Ten steps on fixed gradients."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        weight.grad = scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        optimizer.step()
    return weight.detach()


def test_ten_steps_follow_the_formula() -> None:
    """w -= lr * wd * w; w -= lr / (1 - b1^t) * atan2(m, sqrt(v / (1 - b2^t)))."""
    weight = torch.linspace(-1, 1, 7, dtype=torch.float64)
    found = run(AdamATan2([p := weight.clone().requires_grad_()], 0.1, weight_decay=0.2), p)
    generator, m, v = torch.Generator().manual_seed(0), torch.zeros(7), torch.zeros(7)
    for t in range(1, 11):
        g = torch.randn(7, generator=generator, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        weight = weight * (1 - 0.1 * 0.2)
        weight = weight - 0.1 / (1 - 0.9**t) * torch.atan2(m, (v / (1 - 0.95**t)).sqrt())
    torch.testing.assert_close(found, weight)


def test_it_points_where_adam_points() -> None:
    """atan is odd and increasing: each step has Adam's sign, and at most pi/2 of its rate."""
    ours, adam = torch.zeros(50, requires_grad=True), torch.zeros(50, requires_grad=True)
    ours.grad = adam.grad = torch.randn(50)
    AdamATan2([ours], 0.1, weight_decay=0).step()
    torch.optim.Adam([adam], 0.1, betas=(0.9, 0.95)).step()
    assert torch.equal(ours.detach().sign(), adam.detach().sign())
    assert ours.abs().max() <= 0.1 * math.pi / 2 / 0.1


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    found = [
        run(AdamATan2([p := torch.ones(9, dtype=torch.float64).requires_grad_()], 0.1), p, scale)
        for scale in (1.0, 1e-6)
    ]
    torch.testing.assert_close(*found)


def test_the_average_follows_and_is_swapped_in_and_out() -> None:
    weight = torch.zeros(3, requires_grad=True)
    optimizer = AdamATan2([weight], 0.1, weight_decay=0, ema=0.5)
    average = torch.zeros(3)
    for _ in range(4):
        weight.grad = torch.ones(3)
        optimizer.step()
        average = 0.5 * average + 0.5 * weight.detach()
    trained = weight.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(weight.detach(), average)
    assert torch.equal(weight.detach(), trained)


def test_a_parameter_outside_the_horizon_is_left_alone() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    used.grad = torch.ones(2)
    AdamATan2([used, unused], 0.1).step()
    assert not torch.equal(used.detach(), torch.ones(2))
    assert torch.equal(unused.detach(), torch.ones(2))


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, lr_min_ratio=0.1)
    rates = [learning_rate(settings, step, 110) for step in (1, 5, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 0.55, 0.1])
    constant = OptimizerSettings(lr=1.0, warmup_steps=10)
    assert learning_rate(constant, 99, 110) == 1.0


def test_the_horizon_grows_over_the_first_fifth() -> None:
    passes = [bp_passes(OptimizerSettings(), step, 300) for step in range(1, 301)]
    assert passes[0] == 2 and passes == sorted(passes)
    assert passes.index(3) + 1 == 20 and passes.index(5) + 1 == 60 and passes[-1] == 5
    assert bp_passes(OptimizerSettings(bp_warmup=0.0), 1, 300) == 5
