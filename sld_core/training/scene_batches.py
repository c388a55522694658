"""Which images each step of multi-scene training sees: batches of one scene each, shuffled across
all scenes.

Everything follows from (seed, epoch): two numbers are the position in a run, and determine all
batches from there on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sld_core.types import SldError


@dataclass(frozen=True)
class Batch:
    """Images of one scene, by their row in it."""

    scene: int
    items: tuple[int, ...]


Step = tuple[Batch, ...]  # what one optimiser step sees


class SceneBatches:
    """The steps of a run over scenes of `sizes` images, and the position in it.

    Order "shuffled": a step is one batch; an epoch is every batch of every scene once, in random
    order. Order "rounds": a step is one batch of each scene; an epoch has as many steps as the
    largest scene has batches, and smaller scenes are repeated, reshuffled each time."""

    def __init__(self, sizes: Sequence[int], batch: int, seed: int, order: str = "shuffled"):
        if not sizes or min(sizes) < 1:
            raise SldError(
                f"scenes of {list(sizes)} images: expected at least one scene, and at least "
                "one image in each"
            )
        if batch < 1 or order not in EPOCHS:
            raise SldError(
                f"batches of {batch} images in order {order!r}: expected at least 1, and one "
                f"of {', '.join(EPOCHS)}"
            )
        self.sizes, self.batch, self.seed, self.order = tuple(sizes), batch, seed, order
        self.epoch, self.position = 0, 0
        self._steps = self.steps(0)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps)

    def steps(self, epoch: int) -> list[Step]:
        """All steps of an epoch."""
        return EPOCHS[self.order](self.sizes, self.batch, np.random.default_rng((self.seed, epoch)))

    def next(self) -> Step:
        """The step at the position, which then advances, after the last step of an epoch to the
        first of the next."""
        step = self._steps[self.position]
        self.position += 1
        if self.position == len(self._steps):
            self._go(self.epoch + 1, 0)
        return step

    def state(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a `state()` of the same sizes, batch, seed and order."""
        self._go(state["epoch"], state["position"])

    def _go(self, epoch: int, position: int) -> None:
        self._steps = self.steps(epoch)
        if not 0 <= position < len(self._steps):
            raise SldError(
                f"position {position} in an epoch of {len(self._steps)} steps: the run had "
                "other scenes; start a new one"
            )
        self.epoch, self.position = epoch, position


def shuffled(sizes: Sequence[int], batch: int, rng: np.random.Generator) -> list[Step]:
    """Every batch of every scene once, in random order."""
    batches = [b for scene, size in enumerate(sizes) for b in batches_of(scene, size, batch, rng)]
    return [(batches[i],) for i in rng.permutation(len(batches))]


def rounds(sizes: Sequence[int], batch: int, rng: np.random.Generator) -> list[Step]:
    """One batch of each scene per step, until every image of the largest scene was seen."""
    count = math.ceil(max(sizes) / batch)
    batches = []  # of each scene, one a step
    for scene, size in enumerate(sizes):
        mine = []
        while len(mine) < count:
            mine += batches_of(scene, size, batch, rng)
        batches.append(mine[:count])
    return [tuple(mine[i] for mine in batches) for i in range(count)]


EPOCHS = {"shuffled": shuffled, "rounds": rounds}


def batches_of(scene: int, size: int, batch: int, rng: np.random.Generator) -> list[Batch]:
    """All images of a scene once, in as few batches of at most `batch` as possible, whose sizes
    differ by at most one."""
    parts = np.array_split(rng.permutation(size), math.ceil(size / batch))
    return [Batch(scene, tuple(part.tolist())) for part in parts]
