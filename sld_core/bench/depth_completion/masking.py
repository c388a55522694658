"""Masks for known depth images, to measure how well the masked parts are completed."""

from __future__ import annotations

import cv2
import numpy as np

REGIONS = 20  # of the random partition that masked regions are taken from
CORNERS, CORNER_QUALITY, CORNER_SPACING_PX = 400, 0.005, 3


def mask(
    depth_HW: np.ndarray, rgb_HW3: np.ndarray, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """The known pixels (H, W bool) to mask.

    "blocks": random rectangles over a quarter of the image. "regions": whole cells of a random
    partition, over a quarter of it. "both": 15 % of each. "sparse": all but 400 corners of texture,
    which are what structure from motion knows."""
    if kind == "both":
        masked = blocks(depth_HW.shape, rng, 0.15) | regions(depth_HW.shape, rng, 0.15)
    elif kind == "blocks":
        masked = blocks(depth_HW.shape, rng)
    elif kind == "regions":
        masked = regions(depth_HW.shape, rng)
    elif kind == "sparse":
        masked = all_but_corners(rgb_HW3)
    else:
        raise ValueError(f"no mask {kind!r}; there are both, blocks, regions, sparse")
    return masked & np.isfinite(depth_HW) & (depth_HW > 0)


def blocks(shape: tuple[int, int], rng: np.random.Generator, fraction: float = 0.25) -> np.ndarray:
    """Random rectangles of 1/12 to 1/4 of each side that together cover `fraction` of the image."""
    masked = np.zeros(shape, bool)
    while masked.mean() < fraction:
        size = [int(rng.integers(max(1, side // 12), max(2, side // 4))) for side in shape]
        y, x = (int(rng.integers(0, side - part + 1)) for side, part in zip(shape, size))
        masked[y : y + size[0], x : x + size[1]] = True
    return masked


def regions(shape: tuple[int, int], rng: np.random.Generator, fraction: float = 0.25) -> np.ndarray:
    """Whole random Voronoi cells until `fraction` of the image is covered."""
    seeds = rng.uniform(0, 1, (REGIONS, 2)) * shape
    y, x = np.mgrid[: shape[0], : shape[1]]
    region_HW = np.argmin(np.stack([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds]), 0)
    masked = np.zeros(shape, bool)
    for region in rng.permutation(REGIONS):
        if masked.mean() >= fraction:
            break
        masked |= region_HW == region
    return masked


def all_but_corners(rgb_HW3: np.ndarray) -> np.ndarray:
    """Everything except the strongest corners of the image."""
    grey_HW = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY)
    corners = cv2.goodFeaturesToTrack(grey_HW, CORNERS, CORNER_QUALITY, CORNER_SPACING_PX)
    masked = np.ones(rgb_HW3.shape[:2], bool)
    if corners is not None:
        x, y = corners.reshape(-1, 2).astype(int).T
        masked[y, x] = False
    return masked
