"""Which frame shows which landmark, and where: tri-state, from tracks and, where there is one, from the depth image."""
from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.config import LabelConfig
from sld_core.images import read_depth
from sld_core.types import Frame, Labels, Landmarks, Reconstruction, Visibility


def label(reconstruction: Reconstruction, landmarks: Landmarks, config: LabelConfig) -> Labels:
    """Labels of all frames. A landmark is VISIBLE where its track was seen or the measured depth agrees, HIDDEN outside
    the image or behind something nearer, else UNKNOWN."""
    shape = len(reconstruction.frames), len(landmarks)
    visibility_FL = np.full(shape, Visibility.HIDDEN, np.uint8)
    xy_FL2 = np.full((*shape, 2), np.nan)
    for i, frame in enumerate(reconstruction.frames):
        visibility_FL[i], xy_FL2[i] = label_frame(frame, landmarks.xyz_L3, config)
    landmark_of = np.full(len(reconstruction.points_N3), -1)
    landmark_of[landmarks.point_L] = np.arange(len(landmarks))
    seen = landmark_of[reconstruction.obs_point_M]
    inside = (seen >= 0) & (visibility_FL[reconstruction.obs_frame_M, seen] != Visibility.HIDDEN)
    visibility_FL[reconstruction.obs_frame_M[inside], seen[inside]] = Visibility.VISIBLE
    return Labels(visibility_FL, xy_FL2)


def label_frame(frame: Frame, xyz_L3: np.ndarray, config: LabelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Visibility (L,) and projections (L, 2) from geometry and depth alone, without tracks."""
    xy_L2, z_L = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), xyz_L3)
    size = np.array([frame.camera.width, frame.camera.height])
    with np.errstate(invalid="ignore"):
        inside = (z_L > 0) & (xy_L2 >= 0).all(1) & (xy_L2 < size).all(1)
    visibility = np.where(inside, Visibility.UNKNOWN, Visibility.HIDDEN).astype(np.uint8)
    if frame.depth_path is not None:
        depth_HW = read_depth(frame.depth_path)
        cell = np.floor(xy_L2[inside] / size * depth_HW.shape[::-1]).astype(int)
        measured, z = depth_HW[cell[:, 1], cell[:, 0]], z_L[inside]
        state = visibility[inside]
        known = measured > 0
        state[known & (np.abs(measured - z) < config.depth_tolerance * z)] = Visibility.VISIBLE
        state[known & (measured < config.occluded_ratio * z)] = Visibility.HIDDEN
        visibility[inside] = state
    return visibility, xy_L2
