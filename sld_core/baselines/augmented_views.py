"""Images of a training_set as the frozen backbone sees them, plain and augmented, each with the
homography that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from sld_core.camera.images import load_upright
from sld_core.config.scene import BufferConfig
from sld_core.models.backbone import Backbone
from sld_core.training import augmentation
from sld_core.training.training_set import TrainingSet
from sld_core.types import Camera


@dataclass(frozen=True)
class View:
    """Frame `frame` of the training_set through the backbone: `features_Chw` of an image that
    `warp_33` made of the frame at working size: it takes the frame's pixels, which `camera`
    describes, to that image's. `rng` is this view's own."""

    frame: int
    features_Chw: torch.Tensor
    camera: Camera
    warp_33: np.ndarray
    rng: np.random.Generator


def views(
    training_set: TrainingSet,
    backbone: Backbone,
    config: BufferConfig,
    max_side_px: int,
    device: str,
    seed: int,
) -> Iterator[View]:
    """Each frame as it is (not turned upright), then config.augmented_passes times augmented."""
    for i, frame in enumerate(training_set.frames):
        image, _ = load_upright(frame, max_side_px, 0.0)
        camera = frame.camera.resized(image.shape[1], image.shape[0])
        for number in range(1 + config.augmented_passes):
            rng = np.random.default_rng((seed, number, i))
            seen, warp_33 = augmented(image, config, rng) if number else (image, np.eye(3))
            yield View(i, backbone.features(seen, device), camera, warp_33, rng)


def augmented(
    image_HW3: np.ndarray, config: BufferConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """samples.augment, with the homography (3x3, corner-origin pixels): the one that moved four
    pixels."""
    square = (
        np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]) * image_HW3.shape[1::-1]
    )
    image, moved = augmentation.augment(image_HW3, square, config, rng)
    H = cv2.getPerspectiveTransform(square.astype(np.float32), moved.astype(np.float32))
    return image, H / (
        H[2] @ [*square.mean(0), 1]
    )  # positive where the image is, so that directions keep their sign
