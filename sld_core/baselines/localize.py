"""Localization with a baseline: its detections in one image -> the pose, by the same pose solve for
all of them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

import numpy as np

from sld_core import pnp
from sld_core.baselines.config import LENIENT_PNP
from sld_core.camera.images import fit
from sld_core.localizer import answer
from sld_core.types import Camera, Detections, Localization


class Baseline(Protocol):
    """sld_star.SldStar, nbe.WithBearings, ace.Coordinates."""

    ransac_px: float

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Detections in the image, best first, and the points (N, 3) that `landmark_K` indexes."""


def localize(
    baseline: Baseline, image_HW3: np.ndarray, camera: Camera, max_side_px: int
) -> Localization:
    """The pose of `camera` from one undistorted uint8 RGB image, or the reason there is none, in
    the coordinates of the baseline's training set (relative to its origin_3)."""
    start = time.perf_counter()
    image, small = fit(image_HW3, camera, max_side_px)
    detections, xyz_N3 = baseline.find(image, small)
    found = time.perf_counter()
    limits = replace(LENIENT_PNP, ransac_px=baseline.ransac_px, inlier_px=baseline.ransac_px)
    pose = pnp.estimate(detections, xyz_N3, small, limits)
    seconds = {"find": found - start, "pnp": time.perf_counter() - found}
    return answer(detections, pose, small, camera, seconds)
