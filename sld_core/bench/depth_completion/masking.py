"""What of a known depth image to hide, to see how well it is completed."""

from __future__ import annotations

import cv2
import numpy as np

KINDS = {
    "both": "random rectangles over 15 % of the image, and whole regions over another 15 %",
    "blocks": "random rectangles of 1/12 to 1/4 of each side, over a quarter of the image",
    "regions": "whole cells of a random partition, each about 1/20 of the image, over a "
    "quarter of it",
    "sparse": "all but 400 corners of texture, which is what structure from motion knows",
}
CELLS = 20  # of the random partition that regions are taken from
CORNER_QUALITY, CORNER_SPACING_PX = 0.005, 3


def hide(
    depth_HW: np.ndarray, rgb_HW3: np.ndarray, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """The known pixels (H, W bool) to hide, by the rule `kind` of KINDS."""
    hidden = {
        "both": lambda: blocks(depth_HW.shape, rng, 0.15) | regions(depth_HW.shape, rng, 0.15),
        "blocks": lambda: blocks(depth_HW.shape, rng),
        "regions": lambda: regions(depth_HW.shape, rng),
        "sparse": lambda: all_but_corners(rgb_HW3),
    }[kind]()
    return hidden & np.isfinite(depth_HW) & (depth_HW > 0)


def blocks(shape: tuple[int, int], rng: np.random.Generator, share: float = 0.25) -> np.ndarray:
    """Random rectangles that together cover `share` of the image."""
    hidden = np.zeros(shape, bool)
    while hidden.mean() < share:
        size = [int(rng.integers(max(1, side // 12), max(2, side // 4))) for side in shape]
        y, x = (int(rng.integers(0, side - part + 1)) for side, part in zip(shape, size))
        hidden[y : y + size[0], x : x + size[1]] = True
    return hidden


def regions(shape: tuple[int, int], rng: np.random.Generator, share: float = 0.25) -> np.ndarray:
    """Random Voronoi cells, whole, until `share` of the image is covered."""
    seeds = rng.uniform(0, 1, (CELLS, 2)) * shape
    y, x = np.mgrid[: shape[0], : shape[1]]
    cell_HW = np.argmin(np.stack([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds]), 0)
    hidden = np.zeros(shape, bool)
    for cell in rng.permutation(CELLS):
        if hidden.mean() >= share:
            break
        hidden |= cell_HW == cell
    return hidden


def all_but_corners(rgb_HW3: np.ndarray, count: int = 400) -> np.ndarray:
    """Everything but the `count` strongest corners of the image."""
    corners = cv2.goodFeaturesToTrack(
        cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY), count, CORNER_QUALITY, CORNER_SPACING_PX
    )
    hidden = np.ones(rgb_HW3.shape[:2], bool)
    if corners is not None:
        x, y = corners.reshape(-1, 2).astype(int).T
        hidden[y, x] = False
    return hidden
