"""Which way the surface at each landmark faces, from depth images.

The neighbouring points of a sparse reconstruction are no help: 1 to 2 % of landmarks lay on a plane
through their 16 neighbours, and on the desk these normals were off by 70 degrees in the median."""

from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.camera.images import read_depth
from sld_core.config.scene import LabelConfig
from sld_core.types import Frame, Landmarks, Reconstruction

WINDOW = 0.015  # of the width of a depth image, to either side of a landmark
SAMPLES = 9  # along each side of the window
SURFACE = 0.1  # relative: depths farther than this from the landmark's belong to another surface
MIN_SHARE = 0.6  # of the window's samples on the surface
FLAT = 0.05  # variance across the plane, as part of the smaller one along it
MIN_VIEWS = 2  # that have a normal of the landmark
MIN_AGREEMENT = 0.94  # length of the mean of their normals


def normals_of(
    reconstruction: Reconstruction, landmarks: Landmarks, config: LabelConfig
) -> np.ndarray:
    """Unit normals (L, 3) in world axes, towards the cameras; NaN without depth, where the surface
    is not flat, where views disagree, or where a track saw the landmark from an angle at which its
    normal would hide it."""
    normals_L3 = from_depth(reconstruction, landmarks)
    point, frame = observations(reconstruction, landmarks)
    centre_F3 = np.stack([f.T_world_camera[:3, 3] for f in reconstruction.frames])
    away = faces_away(normals_L3[point], centre_F3[frame] - landmarks.xyz_L3[point], config)
    normals_L3[point[away]] = np.nan
    return normals_L3


def faces_away(normal_K3: np.ndarray, to_camera_K3: np.ndarray, config: LabelConfig) -> np.ndarray:
    """Which surfaces (K,) are seen from more than normal_max_deg off their normal; false where the
    normal is NaN."""
    distance = np.maximum(np.linalg.norm(to_camera_K3, axis=1), 1e-12)
    cosine = np.einsum("ki,ki->k", normal_K3, to_camera_K3) / distance
    return cosine < np.cos(np.radians(config.normal_max_deg))


def from_depth(reconstruction: Reconstruction, landmarks: Landmarks) -> np.ndarray:
    """Normals (L, 3) of planes through the depth images around the landmarks, averaged over the
    frames that track them."""
    sum_L3, views_L = np.zeros((len(landmarks), 3)), np.zeros(len(landmarks))
    landmark, frame = observations(reconstruction, landmarks)
    for i, f in enumerate(reconstruction.frames):
        if f.depth_path is None:
            continue
        mine = landmark[frame == i]
        normal_K3 = depth_normals(f, read_depth(f.depth_path), landmarks.xyz_L3[mine])
        good = np.isfinite(normal_K3).all(1)
        sum_L3[mine[good]] += normal_K3[good]
        views_L[mine[good]] += 1
    length_L = np.linalg.norm(sum_L3, axis=1)
    with np.errstate(invalid="ignore"):
        reliable = (views_L >= MIN_VIEWS) & (length_L >= MIN_AGREEMENT * views_L)
        return np.where(reliable[:, None], sum_L3 / length_L[:, None], np.nan)


def depth_normals(frame: Frame, depth_HW: np.ndarray, xyz_K3: np.ndarray) -> np.ndarray:
    """Normals (K, 3) in world axes of the surfaces that one depth image shows at world points; NaN
    where there is no plane."""
    T_camera_world = geometry.invert(frame.T_world_camera)
    camera = frame.camera.resized(depth_HW.shape[1], depth_HW.shape[0])
    xy_K2, z_K = geometry.project(camera, T_camera_world, xyz_K3)
    reach = max(SAMPLES // 2, round(WINDOW * camera.width))
    step = np.linspace(-reach, reach, SAMPLES).round().astype(int)
    dy, dx = (g.ravel() for g in np.meshgrid(step, step, indexing="ij"))
    corner = np.floor(np.nan_to_num(xy_K2, nan=-1e6)).clip(-1e6, 1e6).astype(int)
    x, y = corner[:, :1] + dx, corner[:, 1:] + dy
    inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height) & (z_K > 0)[:, None]
    z = depth_HW[np.where(inside, y, 0), np.where(inside, x, 0)]
    good = inside & (z > 0) & (np.abs(z - z_K[:, None]) < SURFACE * z_K[:, None])
    column, row = (x + 0.5 - camera.cx) / camera.fx, (y + 0.5 - camera.cy) / camera.fy
    normal_K3 = plane_normals(np.stack([column * z, row * z, z], 2), good)
    normal_K3[good.mean(1) < MIN_SHARE] = np.nan
    ray_K3 = geometry.transform(T_camera_world, xyz_K3)
    towards = np.einsum("ki,ki->k", normal_K3, ray_K3) < 0
    return np.where(towards[:, None], normal_K3, -normal_K3) @ frame.T_world_camera[:3, :3].T


def plane_normals(points_KP3: np.ndarray, good_KP: np.ndarray) -> np.ndarray:
    """Unit normals (K, 3), of either sign, of planes through the good points of each row; NaN where
    they are not flat."""
    weight = good_KP[..., None] / np.maximum(good_KP.sum(1), 1)[:, None, None]
    centred = points_KP3 - (points_KP3 * weight).sum(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("kpi,kpj->kij", centred * weight, centred))
    flat = (values[:, 0] < FLAT * values[:, 1]) & (good_KP.sum(1) >= 4)
    return np.where(flat[:, None], vectors[:, :, 0], np.nan)


def observations(r: Reconstruction, landmarks: Landmarks) -> tuple[np.ndarray, np.ndarray]:
    """Landmark and frame of each track observation of a landmark."""
    landmark_of = np.full(len(r.points_N3), -1)
    landmark_of[landmarks.point_L] = np.arange(len(landmarks))
    seen = landmark_of[r.obs_point_M] >= 0
    return landmark_of[r.obs_point_M[seen]], r.obs_frame_M[seen]
