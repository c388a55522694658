"""The learning rate over a training."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW, Optimizer

from sld_core.config.scene import ScheduleConfig


def optimizer(network: nn.Module, config: ScheduleConfig) -> Optimizer:
    """AdamW at the largest learning rate."""
    return AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)


def set_rate(optimizer: Optimizer, done: float, config: ScheduleConfig) -> None:
    """The learning rate of the whole network at the fraction `done` of its training."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * rate(done, config)


def rate(done: float, config: ScheduleConfig) -> float:
    """The learning rate at the fraction `done` of a training, relative to the largest: a linear
    warm-up, then half a cosine wave to zero, or `halvings` steps, each to half (SLD*)."""
    if done < config.warm_up:
        return (done + 0.01) / (config.warm_up + 0.01)
    if config.kind == "halving":
        return 0.5 ** min(int(done * (config.halvings + 1)), config.halvings)
    return 0.5 * (1 + math.cos(math.pi * (done - config.warm_up) / (1 - config.warm_up)))
