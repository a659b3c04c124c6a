"""What changes with the step: learning rate, horizon, passes; and what that says of time left."""

import math
import random

from hrm_edge.config import HRMTextConfig

from .config import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Rate of `step` (1 to steps): linear warm-up, then a cosine from lr to lr * lr_min_ratio."""
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.lr * step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * (settings.lr_min_ratio + (1 - settings.lr_min_ratio) * cosine)


def bp_passes(settings: OptimizerSettings, step: int, steps: int) -> int:
    """Stack passes that back-propagation reaches at `step`: bp_min, growing linearly to bp_max over
    the first `bp_warmup` of the steps (the reference trainer's compute_train_extra_args).
    """
    warmup = steps * settings.bp_warmup
    progress = min(1.0, step / warmup) if warmup > 0 else 1.0
    return settings.bp_min + int(progress * (settings.bp_max - settings.bp_min))


def grown_plan(
    settings: OptimizerSettings, config: HRMTextConfig, step: int, steps: int
) -> tuple[bool, ...]:
    """The passes that the model has at `step` of `steps`: one of each stack in the first
    `passes_warmup` of the steps, which so take a third of the time or less; then all.
    """
    return config.plan([1], 1) if step <= settings.passes_warmup * steps else config.plan()


def plan(
    settings: OptimizerSettings, config: HRMTextConfig, seed: int, step: int, steps: int
) -> tuple[bool, ...]:
    """Which passes run at `step` of `steps`: those of `grown_plan`, or, once these are all, in the
    share `fewer_passes` of the steps a random plan.

    It follows from seed and step alone, so that all processes, and a resumed run, draw the same.
    """
    grown = grown_plan(settings, config, step, steps)
    draw = random.Random(f"plan {seed} {step}")
    if grown != config.plan() or draw.random() >= settings.fewer_passes:
        return grown
    return config.plan([draw.randint(1, config.L_cycles) for _ in range(config.H_cycles)])


def kv_share(settings: OptimizerSettings, seed: int, step: int) -> str:
    """Whose keys and values of the prompt an answer reads at `step`: "none", each pass its own, or
    "cycle" in the share `shared_slots` of the steps. Drawn as the plan is, apart from it.
    """
    drawn = random.Random(f"kv_share {seed} {step}").random()
    return "cycle" if drawn < settings.shared_slots else "none"


class Pace:
    """How long the rest of a run will take, from the steps so far.

    A step costs a forward through every pass, and twice that for each pass that back-propagation
    reaches, of which there are more as the horizon grows. The first step of a process, which warms
    caches up and compiles, does not count.
    """

    def __init__(self, settings: OptimizerSettings, config: HRMTextConfig, steps: int) -> None:
        self._settings, self._config, self.steps = settings, config, steps
        self._cost, self._seconds, self._begun = 0.0, 0.0, False

    def count(self, step: int, seconds: float) -> None:
        """`step` took `seconds`."""
        if self._begun:
            self._cost += self._cost_of(step)
            self._seconds += seconds
        self._begun = True

    def left(self, step: int) -> float:
        """Seconds for what comes behind `step`; infinite while nothing is known."""
        rest = sum(self._cost_of(each) for each in range(step + 1, self.steps + 1))
        return rest * self._seconds / self._cost if self._cost else math.inf

    def _cost_of(self, step: int) -> int:
        passes = sum(grown_plan(self._settings, self._config, step, self.steps))
        return passes + 2 * min(passes, bp_passes(self._settings, step, self.steps))
