"""Whether a reconstruction agrees with the pairs of images it was made from: a room that was folded
onto another does not."""

from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.optional import pycolmap
from sld_core.sfm.colmap import pose_of, registered

MAX_MATCHES = 100  # of a pair, that are looked at
MAX_ERROR_PX = 8.0  # from the epipolar line
EXPLAINED = 0.7  # of a pair's matches


def agreement(
    model: pycolmap.Reconstruction, database: pycolmap.Database, min_inliers: int = 30
) -> float:
    """The share of verified pairs (those with `min_inliers` matches of one geometry) that the poses
    of `model` explain; a pair with an image that has no pose counts as not explained. It shows
    parts that were put together wrongly, which no reprojection error does."""
    image_of = {image.image_id: image for image in registered(model).values()}
    pose = {i: geometry.invert(pose_of(image)) for i, image in image_of.items()}
    rays: dict[int, np.ndarray] = {}
    explained, total = 0, 0
    pair_ids, views = database.read_two_view_geometries()
    for pair_id, view in zip(pair_ids, views):
        matches = np.asarray(view.inlier_matches)
        if len(matches) < min_inliers:
            continue
        total += 1
        a, b = pycolmap.pair_id_to_image_pair(pair_id)
        if a not in image_of or b not in image_of:
            continue
        matches = matches[:: max(1, len(matches) // MAX_MATCHES)]
        for i in (a, b):
            if i not in rays:
                camera = model.cameras[image_of[i].camera_id]
                rays[i] = _rays(camera, database.read_keypoints(i))
        T_b_a = pose[b] @ geometry.invert(pose[a])
        error = _epipolar_error(T_b_a, rays[a][matches[:, 0]], rays[b][matches[:, 1]])
        focal_px = model.cameras[image_of[b].camera_id].mean_focal_length()
        if np.mean(error * focal_px < MAX_ERROR_PX) > EXPLAINED:
            explained += 1
    return explained / max(total, 1)


def _rays(camera: pycolmap.Camera, keypoints: np.ndarray) -> np.ndarray:
    """Points (N, 2) on the plane one unit before the camera."""
    return np.asarray(camera.cam_from_img(np.asarray(keypoints, float)[:, :2]))


def _epipolar_error(T_b_a: np.ndarray, xy_a_N2: np.ndarray, xy_b_N2: np.ndarray) -> np.ndarray:
    """Distance (N,) of each point of b from the epipolar line of its match, on the plane one unit
    before the camera; for two cameras in one place, from the point itself."""
    ray_a_N3 = np.column_stack([xy_a_N2, np.ones(len(xy_a_N2))]) @ T_b_a[:3, :3].T
    if np.linalg.norm(T_b_a[:3, 3]) < 1e-9:
        return np.linalg.norm(ray_a_N3[:, :2] / ray_a_N3[:, 2:] - xy_b_N2, axis=1)
    line_N3 = np.cross(T_b_a[:3, 3], ray_a_N3)
    distance = np.abs((line_N3[:, :2] * xy_b_N2).sum(1) + line_N3[:, 2])
    return distance / np.maximum(np.linalg.norm(line_N3[:, :2], axis=1), 1e-12)
