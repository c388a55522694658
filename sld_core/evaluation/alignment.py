"""A scene's frame against a reference: which images two sets of poses share, and the similarity
between their frames.

A dataset mapped without poses has a frame of its own. Images of it whose reference poses are known
tell how to compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from sld_core import geometry
from sld_core.config.mapping import MetricConfig
from sld_core.metric.odometry import fit_poses
from sld_core.types import SldError

MIN_COMMON = 3


@dataclass(frozen=True)
class FrameAlignment:
    """x_reference = scale * R @ x_scene + t, and what is left between the poses of the `common`
    images: median metres (units of the reference) and radians."""

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
        """A camera's pose (4x4) in the reference frame; its axes stay of length 1."""
        return geometry.make_transform(
            self.R @ T_scene_camera[:3, :3], self.points(T_scene_camera[None, :3, 3])[0]
        )


def align_poses(T_scene_N44: np.ndarray, T_reference_N44: np.ndarray) -> FrameAlignment:
    """The robust similarity that lays camera poses over reference poses of the same images.

    Positions and orientations both take part: a camera moved along a straight line will do. The
    scale is the ratio of the spreads of the positions (Horn, JOSA 1987): where errors are not small
    against the camera's motion, that of least squares is too small by those of the scene, while
    here those of scene and reference cancel as far as they are alike. SldError for fewer than three
    images, or where the camera does not move and there is no scale."""
    scene, reference = np.asarray(T_scene_N44), np.asarray(T_reference_N44)
    common = len(scene)
    if common < MIN_COMMON:
        raise SldError(
            f"{common} images with poses in both frames: expected at least {MIN_COMMON} to "
            "align them"
        )
    fit = fit_poses(scene, reference, MetricConfig())
    if fit is None:
        raise SldError(
            f"the {common} images with poses in both frames were taken from one place; "
            "expected a camera that moved, "
            "for the scale"
        )
    extents = [_extent(side[fit.inlier_N]) for side in (reference, scene)]
    if min(extents) > 0:
        fit = fit_poses(scene, reference, MetricConfig(), extents[0] / extents[1])
    return FrameAlignment(
        fit.scale,
        fit.R,
        fit.t,
        common,
        float(np.median(fit.position_error_N)),
        float(np.median(fit.angle_error_N)),
    )


def _extent(T_N44: np.ndarray) -> float:
    """Root mean square distance of camera positions from their mean."""
    return float(np.sqrt(T_N44[:, :3, 3].var(0).sum())) if len(T_N44) else 0.0


def common_images(
    sources: Sequence[str], references: Sequence[str], places: Sequence[str]
) -> list[tuple[int, int]]:
    """Pairs (row of `sources`, row of `references`) that name the same image file.

    `references` are paths relative to a folder, `places` the same ones absolute; `sources` are
    paths as a user gave them, from any folder up. Two match where one path ends in the other, or as
    far as they go on alike above the folder: of several, the one with most trailing parts in common
    is the image; where that leaves two, none is."""
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
    return next(
        (k for k, (x, y) in enumerate(zip(reversed(a), reversed(b))) if x != y), min(len(a), len(b))
    )


def _clear_best(score: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """The pairs that score higher than any other pair of their row or column."""
    scores: dict[tuple[int, int], list[int]] = defaultdict(
        list
    )  # (0, row) or (1, column) -> those of its pairs
    for pair, value in score.items():
        for line in enumerate(pair):
            scores[line].append(value)
    highest = {
        line: max(values) if values.count(max(values)) == 1 else None
        for line, values in scores.items()
    }
    return [
        pair
        for pair, value in score.items()
        if all(highest[line] == value for line in enumerate(pair))
    ]
