"""Patches of a scene's images with the landmarks' places in them, as multi-scene backbone training
sees them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sld_core.camera.images import load_upright
from sld_core.config.training import BackboneTrainingConfig
from sld_core.training import augmentation, targets
from sld_core.training.training_set import TrainingSet, upright_angles
from sld_core.types import Visibility

Job, Loaded = TypeVar("Job"), TypeVar("Loaded")
NEAR = (
    0.4  # of the patch's side: how far from its centre the landmark may lie about which it was cut
)


@dataclass(frozen=True)
class Patches:
    """Square patches `image_NPP3` (uint8 RGB) with each landmark's `xy_NL2` (pixels of the patch,
    corner origin, float32; far away for those elsewhere) and `visibility_NL` (uint8)."""

    image_NPP3: np.ndarray
    xy_NL2: np.ndarray
    visibility_NL: np.ndarray


class SceneImages:
    """The images of one training_set, to draw patches from; `number` tells scenes of one run
    apart."""

    def __init__(self, training_set: TrainingSet, number: int, config: BackboneTrainingConfig):
        self.training_set, self.number, self.config = training_set, number, config
        self.angle_rad_F = upright_angles(training_set.frames)

    def draw(self, items: Iterable[int], epoch: int) -> Patches:
        """`config.patches` of each image; what is drawn of an image depends on the seed, the epoch
        and the image alone, so that neither a resumed run nor another number of processes sees
        anything else."""
        drawn = []
        for item in items:
            rng = np.random.default_rng((self.config.scene.seed, epoch, self.number, item))
            image, A = load_upright(
                self.training_set.frames[item],
                self.config.scene.image.max_side_px,
                self.angle_rad_F[item],
            )
            xy_L2 = self.training_set.labels.xy_FL2[item] @ A[:, :2].T + A[:, 2]
            around = round(self.config.positive_patches * self.config.patches)
            drawn += [
                patch(
                    image,
                    xy_L2,
                    self.training_set.labels.visibility_FL[item],
                    self.config,
                    k < around,
                    rng,
                )
                for k in range(self.config.patches)
            ]
        return Patches(*(np.stack(parts) for parts in zip(*drawn)))


def patch(
    image_HW3: np.ndarray,
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: BackboneTrainingConfig,
    around: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One augmented patch, `around` some visible landmark or anywhere: image, xy_L2 and
    visibility_L. Landmarks that are too far outside to leave a trace in its heatmaps are HIDDEN,
    whatever they are in the image."""
    side = config.patch_px
    moved_centre = np.array([[1, 0, side / 2], [0, 1, side / 2], [0, 0, 1]])
    moved_centre[:2, 2] -= centre(image_HW3.shape, xy_L2, visibility_L, side, around, rng)
    H = augmentation.random_view(side, side, config.scene.buffer, rng) @ moved_centre
    image = augmentation.warp(image_HW3, H, side, side)
    moved = np.column_stack([xy_L2, np.ones(len(xy_L2))]) @ H.T
    with np.errstate(invalid="ignore", divide="ignore"):
        xy = moved[:, :2] / moved[:, 2:]
        reach = targets.reach_px(config.sigma_px, config.floor)
        inside = (moved[:, 2] > 0) & (xy > -reach).all(1) & (xy < side + reach).all(1)
    return (
        augmentation.recolour(image, config.scene.buffer, rng),
        np.where(inside[:, None], xy, -1e4).astype(np.float32),
        np.where(inside, visibility_L, Visibility.HIDDEN).astype(np.uint8),
    )


def centre(
    shape: tuple[int, ...],
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    side: int,
    around: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where to cut a patch: near a random landmark that is visible in the image, if there is one,
    or anywhere."""
    size = np.array([shape[1], shape[0]])
    with np.errstate(invalid="ignore"):
        seen = np.flatnonzero(
            (visibility_L == Visibility.VISIBLE) & (xy_L2 >= 0).all(1) & (xy_L2 < size).all(1)
        )
    if around and len(seen):
        return xy_L2[rng.choice(seen)] + rng.uniform(-NEAR, NEAR, 2) * side
    return rng.uniform(np.minimum(side, size) / 2, size - np.minimum(side, size) / 2)


def ahead(
    jobs: Iterable[Job], load: Callable[[Job], Loaded], threads: int
) -> Iterator[tuple[Job, Loaded]]:
    """Every job with what `load` makes of it, in order; up to `threads` are loaded while the caller
    works on one."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for job in jobs:
            waiting.append((job, pool.submit(load, job)))
            if len(waiting) > threads:
                job, loaded = waiting.popleft()
                yield job, loaded.result()
        while waiting:
            job, loaded = waiting.popleft()
            yield job, loaded.result()
