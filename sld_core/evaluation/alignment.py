"""A scene's frame against a reference: which images two sets of poses share, and the similarity
between their frames.

A dataset mapped without poses has a frame of its own. It is compared through those of its images
whose reference poses are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

import numpy as np

from sld_core import geometry
from sld_core.config.mapping import MetricConfig
from sld_core.metric.odometry import fit_poses
from sld_core.types import SldError

MIN_COMMON = 3


@dataclass(frozen=True)
class FrameAlignment:
    """x_reference = scale * R @ x_scene + t, and the median differences between the poses of the
    `common` images that remain: in the unit of the reference, and radians."""

    scale: float
    R: np.ndarray
    t: np.ndarray
    common: int
    median_m: float
    median_rad: float

    def points(self, xyz_N3: np.ndarray) -> np.ndarray:
        """Points of the scene (N, 3) in the reference frame."""
        return self.scale * xyz_N3 @ self.R.T + self.t

    def pose(self, T_scene_camera: np.ndarray) -> np.ndarray:
        """A camera's pose (4x4) in the reference frame."""
        return geometry.make_transform(
            self.R @ T_scene_camera[:3, :3], self.points(T_scene_camera[None, :3, 3])[0]
        )

    def covariance(self, covariance_66: np.ndarray) -> np.ndarray:
        """That of a pose (PoseEstimate), in the reference frame."""
        J = np.zeros((6, 6))
        J[:3, :3], J[3:, 3:] = self.scale * self.R, self.R
        return J @ covariance_66 @ J.T


def align_poses(
    T_scene_N44: np.ndarray, T_reference_N44: np.ndarray, config: MetricConfig = MetricConfig()
) -> FrameAlignment:
    """The robust similarity from camera poses to reference poses of the same images.

    Positions and orientations both take part, so a camera that moved along a straight line is
    enough. The scale is the ratio of the spreads of the positions (Horn, JOSA 1987). Where errors
    are not small compared with the camera's motion, the errors of the scene make the least-squares
    scale too small; here those of scene and reference cancel as far as they are alike. SldError for
    fewer than three images, or where the camera does not move and there is no scale."""
    scene, reference = np.asarray(T_scene_N44), np.asarray(T_reference_N44)
    common = len(scene)
    if common < MIN_COMMON:
        raise SldError(
            f"{common} images with poses in both frames: expected at least {MIN_COMMON} to "
            "align them"
        )
    fit = fit_poses(scene, reference, config)
    if fit is None:
        raise SldError(
            f"the {common} images with poses in both frames were taken from one place; expected a "
            "camera that moved, for the scale"
        )
    extent, extent_reference = _extent(scene[fit.inlier_N]), _extent(reference[fit.inlier_N])
    if min(extent, extent_reference) > 0:
        fit = fit_poses(scene, reference, config, extent_reference / extent)
    errors = float(np.median(fit.position_error_N)), float(np.median(fit.angle_error_N))
    return FrameAlignment(fit.scale, fit.R, fit.t, common, *errors)


def _extent(T_N44: np.ndarray) -> float:
    """Root mean square distance of camera positions from their mean."""
    return float(np.sqrt(T_N44[:, :3, 3].var(0).sum())) if len(T_N44) else 0.0


def common_images(
    sources: Sequence[str], references: Sequence[str], places: Sequence[str]
) -> list[tuple[int, int]]:
    """Pairs (row of `sources`, row of `references`) that name the same image file.

    `references` are paths relative to a folder, `places` the same paths absolute; `sources` are
    paths as a user gave them, relative to any folder. Two match where one path ends in the other.
    Of several matches, the one with most trailing parts in common counts; where two have as many,
    none does."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for j, path in enumerate(references):
        by_name[PurePosixPath(path).name].append(j)
    score: dict[tuple[int, int], int] = {}
    for i, source in enumerate(sources):
        parts = PurePosixPath(source).parts
        for j in by_name.get(parts[-1], []) if parts else []:
            alike = _trailing(parts, PurePosixPath(places[j]).parts)
            if alike >= min(len(parts), len(PurePosixPath(references[j]).parts)):
                score[i, j] = alike
    return sorted(_clear_best(score))


def _trailing(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many trailing parts are the same."""
    same = (x == y for x, y in zip(reversed(a), reversed(b)))
    return sum(1 for _ in takewhile(bool, same))


def _clear_best(score: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """The pairs that score higher than any other pair of their row and of their column."""
    rows: dict[int, list[int]] = defaultdict(list)
    columns: dict[int, list[int]] = defaultdict(list)
    for (i, j), value in score.items():
        rows[i].append(value)
        columns[j].append(value)

    def clear(value: int, rivals: list[int]) -> bool:
        return value == max(rivals) and rivals.count(value) == 1

    return [(i, j) for (i, j), v in score.items() if clear(v, rows[i]) and clear(v, columns[j])]
