"""Frames + Labels -> images as the head is trained on: plain or augmented, with the landmarks' places moved along."""
from __future__ import annotations

import cv2
import numpy as np

from sld_core.config import BufferConfig
from sld_core.images import fit, index_warp, read_image, rotate
from sld_core.types import Frame


def load(frame: Frame, max_side_px: int, angle_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """The frame's image at working size, turned by `angle_rad`, and the 2x3 matrix that moves its pixels along."""
    image, camera = fit(read_image(frame.image_path), frame.camera, max_side_px)
    image, A = rotate(image, angle_rad)
    A[:, :2] *= [camera.width / frame.camera.width, camera.height / frame.camera.height]
    return image, A


def augment(image_HW3: np.ndarray, xy_L2: np.ndarray, config: BufferConfig,
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A rotated, scaled, recoloured, sometimes blurred copy of the image, and the pixels (corner origin) moved along."""
    height, width = image_HW3.shape[:2]
    angle = rng.uniform(-config.max_rotation_deg, config.max_rotation_deg)
    scale = np.exp(rng.uniform(np.log(config.min_scale), np.log(config.max_scale)))
    warp = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    image = cv2.warpAffine(image_HW3, index_warp(warp), (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return recolour(image, config, rng), xy_L2 @ warp[:, :2].T + warp[:, 2]


def recolour(image_HW3: np.ndarray, config: BufferConfig, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, colour cast, blur and noise, at random."""
    image = image_HW3.astype(np.float32)
    image = (image - 128) * rng.uniform(1 - config.contrast, 1 + config.contrast) + 128
    image += rng.uniform(-config.brightness, config.brightness)
    image += rng.uniform(-config.channel_shift, config.channel_shift, 3).astype(np.float32)
    if rng.random() < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    image += cv2.randn(np.empty_like(image), 0, config.noise) if config.noise else 0
    return np.clip(image, 0, 255).astype(np.uint8)
