"""The training loop that all baselines share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import contextmanager

from torch import Tensor, nn

from sld_core.config.scene import ScheduleConfig
from sld_core.training import schedule
from sld_core.training.run import Run
from sld_core.types import Progress, SldError

LossCurve = list[tuple[int, float]]  # step, mean loss


class Budget:
    """A number of steps and of seconds, whichever is used up first. The clock stops in `pause`."""

    def __init__(self, steps: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.steps, self.limit, self._clock = steps, seconds, clock
        self.step, self._paused, self._start = 0, 0.0, clock()

    @property
    def seconds(self) -> float:
        """Seconds used so far, without pauses."""
        return self._clock() - self._start - self._paused

    @property
    def done(self) -> float:
        """The fraction of the training that is done, 0..1."""
        return min(1.0, max(self.step / self.steps, self.seconds / self.limit))

    @property
    def seconds_left(self) -> float:
        done = self.done
        return self.seconds * (1 - done) / done if done else self.limit

    @contextmanager
    def pause(self):
        start = self._clock()
        yield
        self._paused += self._clock() - start


def fit(
    network: nn.Module,
    batch_loss: Callable[[float], Tensor],
    config: ScheduleConfig,
    budget: Budget,
    run: Run,
    watch: Callable[[int, float], None] = lambda step, seconds: None,
    watch_steps: int = 10**9,
) -> LossCurve:
    """Train until the budget is used up. `batch_loss` computes the loss of the next batch, given
    the fraction of the training that is done. `watch` is called with the steps and seconds so far
    every `watch_steps` and at the end, off the clock."""
    optimizer = schedule.optimizer(network, config)
    curve, running, last = [], math.nan, False
    while not last:
        done = budget.done
        schedule.set_rate(optimizer, done, config)
        loss = batch_loss(done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running = loss.item() if budget.step == 0 else 0.95 * running + 0.05 * loss.item()
        budget.step += 1
        last = budget.done == 1
        if budget.step % 10 == 0 or last:
            curve.append((budget.step, running))
            run.progress(Progress("training", budget.done, running, budget.seconds_left))
        if budget.step % watch_steps == 0 or last:
            with budget.pause():
                watch(budget.step, budget.seconds)
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower schedule.learning_rate from "
            f"{config.learning_rate}"
        )
    return curve
