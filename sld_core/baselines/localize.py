"""Localization by the models that sld is compared with: what a baseline finds in an image -> the
pose. The same pose solve for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sld_core import pnp
from sld_core.camera.images import fit, read_image
from sld_core.config.scene import PnpConfig
from sld_core.evaluation.metrics import QueryResult
from sld_core.localizer import answer
from sld_core.types import Camera, Detections, Frame, Localization

MIN_INLIERS = 6


class Baseline(Protocol):
    """baselines.sld_star_model.SldStar, baselines.nbe_model.WithBearings,
    baselines.ace_model.Coordinates."""

    ransac_px: float

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Detections in the image, best first, and the points (N, 3) that their `landmark_K`
        count."""


def localize(
    baseline: Baseline, image_HW3: np.ndarray, camera: Camera, max_side_px: int
) -> Localization:
    """The pose of `camera` in the coordinates the baseline was trained in (those of its
    training_set, without origin_3) from one undistorted uint8 RGB image, or the reason there is
    none."""
    start = time.perf_counter()
    image, small = fit(image_HW3, camera, max_side_px)
    detections, xyz_N3 = baseline.find(image, small)
    found = time.perf_counter()
    pose = pnp.estimate(detections, xyz_N3, small, lenient(baseline.ransac_px))
    seconds = {"find": found - start, "pnp": time.perf_counter() - found}
    return answer(detections, pose, small, camera, seconds)


def lenient(ransac_px: float) -> PnpConfig:
    """Loose RANSAC, robust refinement, and whatever comes of it is the answer, as published: no
    gate of ours refuses a pose."""
    return PnpConfig(
        ransac_px=ransac_px,
        inlier_px=ransac_px,
        min_inliers=MIN_INLIERS,
        min_inlier_ratio=0.0,
        max_position_sigma_m=np.inf,
        max_relative_sigma=np.inf,
        max_rotation_sigma_rad=np.inf,
    )


def evaluate(baseline: Baseline, frames: Sequence[Frame], max_side_px: int) -> list[QueryResult]:
    """What the baseline says of frames whose poses are known, in the coordinates it was trained in
    (TrainingSet.validation, or training_set.moved(frame, -origin_3)); evaluate.accuracy makes
    recall of it."""
    results = []
    for frame in frames:
        found = localize(baseline, read_image(frame.image_path), frame.camera, max_side_px)
        T_estimated = found.pose.T_world_camera if found.pose else None
        results.append(
            QueryResult(
                frame.name,
                frame.T_world_camera,
                T_estimated,
                found.reason,
                sum(found.seconds.values()),
            )
        )
    return results
