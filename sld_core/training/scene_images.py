"""Patches of a scene's images with the positions of landmarks, for multi-scene backbone
training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sld_core.config.training import BackboneTrainingConfig
from sld_core.training import augmentation, targets
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import upright
from sld_core.types import Visibility

Job, Loaded = TypeVar("Job"), TypeVar("Loaded")
# of the patch's side: the largest offset of the patch's centre from the landmark it is cut around
MAX_OFFSET = 0.4


@dataclass(frozen=True)
class Patches:
    """Square patches `image_NPP3` (uint8 RGB) with each landmark's `xy_NL2` (pixels of the patch,
    corner origin, float32; far away for those elsewhere) and `visibility_NL` (uint8)."""

    image_NPP3: np.ndarray
    xy_NL2: np.ndarray
    visibility_NL: np.ndarray


class SceneImages:
    """The images of one scene, to draw patches from; `number` identifies the scene in a run."""

    def __init__(self, training_set: TrainingSet, number: int, config: BackboneTrainingConfig):
        self.training_set, self.number, self.config = training_set, number, config
        self.images = upright(training_set.frames, config.scene.image.max_side_px)

    def draw(self, rows: Iterable[int], epoch: int) -> Patches:
        """Draw `config.patches` of each image. They depend on the seed, the epoch and the image
        alone, so a resumed run or another number of processes sees the same."""
        config, labels, drawn = self.config, self.training_set.labels, []
        around = round(config.positives * config.patches)
        for row in rows:
            rng = np.random.default_rng((config.scene.seed, epoch, self.number, row))
            image, A = self.images.load(row)
            xy_L2 = labels.xy_FL2[row] @ A[:, :2].T + A[:, 2]
            visibility_L = labels.visibility_FL[row]
            for k in range(config.patches):
                drawn.append(patch(image, xy_L2, visibility_L, config, k < around, rng))
        images, positions, visibilities = zip(*drawn)
        return Patches(np.stack(images), np.stack(positions), np.stack(visibilities))


def patch(
    image_HW3: np.ndarray,
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: BackboneTrainingConfig,
    around: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One augmented patch, `around` a visible landmark or anywhere: image, xy_L2 and visibility_L.

    Landmarks that are too far outside to affect its heatmaps are HIDDEN, whatever they are in the
    image."""
    side = config.patch_px
    to_patch = np.array([[1, 0, side / 2], [0, 1, side / 2], [0, 0, 1]])
    to_patch[:2, 2] -= centre(image_HW3.shape, xy_L2, visibility_L, side, around, rng)
    H = augmentation.random_view(side, side, config.scene.buffer, rng) @ to_patch
    image = augmentation.recolour(
        augmentation.warp(image_HW3, H, side, side), config.scene.buffer, rng
    )
    moved = np.column_stack([xy_L2, np.ones(len(xy_L2))]) @ H.T
    with np.errstate(invalid="ignore", divide="ignore"):
        xy = moved[:, :2] / moved[:, 2:]
        reach = targets.reach_px(config.target)
        near = (moved[:, 2] > 0) & (xy > -reach).all(1) & (xy < side + reach).all(1)
    return (
        image,
        np.where(near[:, None], xy, -1e4).astype(np.float32),
        np.where(near, visibility_L, Visibility.HIDDEN).astype(np.uint8),
    )


def centre(
    shape: tuple[int, ...],
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    side: int,
    around: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """The centre of a patch: near a random landmark that is visible in the image, if there is one,
    or anywhere."""
    size = np.array([shape[1], shape[0]])
    with np.errstate(invalid="ignore"):
        inside = (xy_L2 >= 0).all(1) & (xy_L2 < size).all(1)
    visible = np.flatnonzero(inside & (visibility_L == Visibility.VISIBLE))
    if around and len(visible):
        return xy_L2[rng.choice(visible)] + rng.uniform(-MAX_OFFSET, MAX_OFFSET, 2) * side
    margin = np.minimum(side, size) / 2
    return rng.uniform(margin, size - margin)


def ahead(
    jobs: Iterable[Job], load: Callable[[Job], Loaded], threads: int
) -> Iterator[tuple[Job, Loaded]]:
    """Every job with its loaded data, in order; up to `threads` are loaded while the caller works
    on one."""
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
