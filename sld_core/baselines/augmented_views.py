"""Images of a training set as the frozen backbone sees them, plain and augmented, each with the
homography that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from sld_core.config.scene import BufferConfig, SceneConfig
from sld_core.models.backbone import Backbone
from sld_core.training import augmentation
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import unrotated
from sld_core.types import Camera


@dataclass(frozen=True)
class View:
    """One image of frame `frame` of the training set: its `features_Chw`; the `camera` of the frame
    at working size; `warp_33`, which maps pixels of that camera to pixels of this image; and the
    view's own random generator."""

    frame: int
    features_Chw: torch.Tensor
    camera: Camera
    warp_33: np.ndarray
    rng: np.random.Generator


def views(
    training_set: TrainingSet, backbone: Backbone, scene: SceneConfig, run: Run
) -> Iterator[View]:
    """Each frame as it is (not rotated upright), then buffer.augmented_passes times augmented."""
    images = unrotated(training_set.frames, scene.image.max_side_px)
    for i, frame in enumerate(training_set.frames):
        plain, _ = images.load(i)
        camera = frame.camera.resized(plain.shape[1], plain.shape[0])
        for number in range(1 + scene.buffer.augmented_passes):
            rng = np.random.default_rng((run.seed, number, i))
            image, warp_33 = plain, np.eye(3)
            if number > 0:
                image, warp_33 = augmented(plain, scene.buffer, rng)
            yield View(i, backbone.features(image, run.device), camera, warp_33, rng)


def augmented(
    image_HW3: np.ndarray, config: BufferConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`augmentation.augment`, with the homography (3x3, corner-origin pixels), found from where it
    moved four pixels."""
    size = image_HW3.shape[1::-1]
    square = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]) * size
    image, moved = augmentation.augment(image_HW3, square, config, rng)
    H = cv2.getPerspectiveTransform(square.astype(np.float32), moved.astype(np.float32))
    # its sign is chosen so that directions in front of the camera stay in front
    return image, H / (H[2] @ [*square.mean(0), 1])
