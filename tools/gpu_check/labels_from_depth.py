"""Landmarks and labels from depth images, in place of structure from motion: for checks on machines
without pycolmap, on frames whose poses and depths are exact."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import cKDTree

from sld_core import geometry
from sld_core.camera.images import read_depth, read_image
from sld_core.config.scene import LabelConfig, LandmarkConfig
from sld_core.landmarks.selection import select
from sld_core.landmarks.visibility import label
from sld_core.spread import spread
from sld_core.types import Frame, Reconstruction, SceneData, SldError

KEYPOINTS = 800  # of each image
SEED_FRAMES = 30  # whose keypoints become points
SPACING_M = 0.06  # of points
NEAR_PX = 1.5  # from a point to a keypoint that shows it
SAME_DEPTH = 0.03  # relative difference up to which a depth image shows a point


def label_by_depth(frames: Sequence[Frame], config: LandmarkConfig) -> SceneData:
    """The labelled data set of frames whose poses and depth images are exact. A point is a SIFT
    keypoint at its depth; it is observed wherever the depth agrees and a keypoint is near."""
    frames = tuple(frames)
    lacking = [f.name for f in frames if f.depth_path is None]
    if lacking:
        raise SldError(f"frame {lacking[0]} has no depth image; expected one of every frame")
    keypoints = [_keypoints(frame) for frame in frames]
    depths = [read_depth(frame.depth_path) for frame in frames]
    lifted = [_lifted(*one) for one in zip(frames, keypoints, depths)]
    points_N3 = _thinned(np.concatenate(spread(lifted, SEED_FRAMES)))
    seen = [_observed(points_N3, *one) for one in zip(frames, keypoints, depths)]
    point_M = np.concatenate([point for point, _, _ in seen])
    order = np.argsort(point_M, kind="stable")
    count_N = np.bincount(point_M, minlength=len(points_N3)).clip(1)
    off_M = np.concatenate([off for _, _, off in seen])
    reconstruction = Reconstruction(
        frames,
        points_N3,
        np.bincount(point_M, off_M, len(points_N3)) / count_N,
        point_M[order],
        np.repeat(np.arange(len(frames)), [len(point) for point, _, _ in seen])[order],
        np.concatenate([xy for _, xy, _ in seen])[order],
    )
    landmarks = select(reconstruction, config)
    labels = label(reconstruction, landmarks, LabelConfig())
    return SceneData(frames, ("train",) * len(frames), landmarks, labels.visibility_FL, True)


def _keypoints(frame: Frame) -> np.ndarray:
    gray = cv2.cvtColor(read_image(frame.image_path), cv2.COLOR_RGB2GRAY)
    found = cv2.SIFT_create(KEYPOINTS).detect(gray)
    return np.array([keypoint.pt for keypoint in found]).reshape(-1, 2) + 0.5


def _at(depth_HW: np.ndarray, frame: Frame, xy_K2: np.ndarray) -> np.ndarray:
    """The depth (K,) at pixels inside the image."""
    height, width = depth_HW.shape
    column, row = (xy_K2 * [width / frame.camera.width, height / frame.camera.height]).T.astype(int)
    return depth_HW[row.clip(0, height - 1), column.clip(0, width - 1)]


def _lifted(frame: Frame, xy_K2: np.ndarray, depth_HW: np.ndarray) -> np.ndarray:
    z = _at(depth_HW, frame, xy_K2)
    xy_K2, z = xy_K2[z > 0], z[z > 0]
    camera = frame.camera
    ray_K2 = (xy_K2 - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    return geometry.transform(frame.T_world_camera, np.column_stack([ray_K2 * z[:, None], z]))


def _thinned(points_N3: np.ndarray) -> np.ndarray:
    """One point of each cube."""
    _, first = np.unique(np.floor(points_N3 / SPACING_M), axis=0, return_index=True)
    return points_N3[np.sort(first)]


def _observed(
    points_N3: np.ndarray, frame: Frame, keypoints_K2: np.ndarray, depth_HW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points the frame shows, at which pixels, and how far (pixels) from a keypoint."""
    xy_N2, z_N = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), points_N3)
    with np.errstate(invalid="ignore"):
        inside = (xy_N2 >= 0).all(1) & (xy_N2 < [frame.camera.width, frame.camera.height]).all(1)
    point = np.flatnonzero(inside & (z_N > 0))
    measured = _at(depth_HW, frame, xy_N2[point])
    point = point[np.abs(measured - z_N[point]) < SAME_DEPTH * z_N[point]]
    if len(keypoints_K2) == 0:
        return point[:0], xy_N2[:0], z_N[:0]
    off, _ = cKDTree(keypoints_K2).query(xy_N2[point])
    return point[off < NEAR_PX], xy_N2[point[off < NEAR_PX]], off[off < NEAR_PX]
