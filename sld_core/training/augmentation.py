"""Random changes of training images: viewpoint, colour, blur and noise; the landmarks move
along."""

from __future__ import annotations

import cv2
import numpy as np

from sld_core import geometry
from sld_core.config.scene import BufferConfig


def augment(
    image_HW3: np.ndarray, xy_L2: np.ndarray, config: BufferConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy seen from elsewhere (rotated, scaled, tilted), recoloured and sometimes blurred, and
    where the pixels `xy_L2` (corner origin) are in it."""
    height, width = image_HW3.shape[:2]
    H = random_view(width, height, config, rng)
    image = recolour(warp(image_HW3, H, width, height), config, rng)
    moved = np.column_stack([xy_L2, np.ones(len(xy_L2))]) @ H.T
    return image, np.where(moved[:, 2:] > 0, moved[:, :2] / moved[:, 2:], np.nan)


def warp(image_HW3: np.ndarray, H_33: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image of size (height, width) that the homography of corner-origin pixels makes of
    `image_HW3`, which is mirrored beyond its border."""
    to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV warps pixel indices
    return cv2.warpPerspective(
        image_HW3,
        np.linalg.inv(to_corner) @ H_33 @ to_corner,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def random_view(
    width: int, height: int, config: BufferConfig, rng: np.random.Generator
) -> np.ndarray:
    """Homography (3x3, corner-origin pixels) between two views of a plane: facing it, and after the
    camera rotated about its axis, moved nearer or farther, and swung around the plane's centre by
    up to max_tilt_deg."""
    roll = np.radians(rng.uniform(-config.max_rotation_deg, config.max_rotation_deg))
    scale = np.exp(rng.uniform(np.log(config.min_scale), np.log(config.max_scale)))
    tilt = np.radians(rng.uniform(0, config.max_tilt_deg))
    direction = rng.uniform(0, 2 * np.pi)
    swing = geometry.rotation_from_vector(
        tilt * np.array([np.cos(direction), np.sin(direction), 0])
    )
    # a point (x, y) of the plane at distance 1 moves to R (x, y, 0) + (0, 0, 1)
    focal = max(width, height)
    plane = np.column_stack([swing[:, :2], [0, 0, 1.0]])
    c, s = scale * np.cos(roll), scale * np.sin(roll)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return K @ turn @ plane @ np.linalg.inv(K)


def recolour(image_HW3: np.ndarray, config: BufferConfig, rng: np.random.Generator) -> np.ndarray:
    """Random contrast, brightness, colour cast, blur and noise."""
    image = image_HW3.astype(np.float32)
    image = (image - 128) * rng.uniform(1 - config.contrast, 1 + config.contrast) + 128
    image += rng.uniform(-config.brightness, config.brightness)
    image += rng.uniform(-config.channel_shift, config.channel_shift, 3).astype(np.float32)
    if rng.random() < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.0))
    cv2.setRNGSeed(int(rng.integers(2**31)))  # of randn, so that its noise follows from rng
    if config.noise:
        image += cv2.randn(np.empty_like(image), 0, config.noise)
    return np.clip(image, 0, 255).astype(np.uint8)
