"""Where a training runs and who follows it: the arguments that all trainings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sld_core.training.distributed import ALONE, World
from sld_core.types import Progress


def ignore(progress: Progress) -> None:
    """For callers that show no progress."""


@dataclass(frozen=True)
class Run:
    """The torch device, the seed of all that is random, this process among those of torchrun, and
    what is called with the progress."""

    device: str = "cpu"
    seed: int = 0
    world: World = ALONE
    progress: Callable[[Progress], None] = ignore
