"""Which way is up in a reconstruction: by its floors, tables, ceilings and walls, or by how the
camera was held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sld_core import geometry
from sld_core.config.mapping import MetricConfig
from sld_core.metric.scale import median_depth
from sld_core.types import Reconstruction

HYPOTHESES = 400
MAX_POINTS = 3000
NEIGHBOURS = 40  # a plane is proposed by points near each other
MAX_PLANES = 10
# horizontal length of a viewing direction, below which it is nearly straight up or down
HORIZONTAL_SHARE = 0.35


@dataclass(frozen=True)
class Up:
    """The direction (3,) of up, "planes" or "views", the angle between the two, and the share of
    points on the planes used."""

    direction_3: np.ndarray
    kind: str
    planes_to_views_deg: float
    support: float
    note: str = ""


def find_up(reconstruction: Reconstruction, config: MetricConfig) -> Up:
    """Up by the dominant horizontal and vertical planes that are within `config.max_tilt_deg` of
    the up of the views; without such planes, the up of the views."""
    prior = up_of_views(np.stack([f.T_world_camera for f in reconstruction.frames]))
    normals, support = dominant_planes(reconstruction, prior, config)
    found = _up_of_planes(normals, support, prior, config) if len(normals) else None
    if found is None:
        return Up(
            prior,
            "views",
            0.0,
            0.0,
            "no floor, table or pair of walls was found: up is the mean upward direction of the "
            "images, and off by as much as the camera was tilted",
        )
    up, share = found
    return Up(up, "planes", angle_deg(up, prior), share)


def up_of_views(T_world_camera_F44: np.ndarray) -> np.ndarray:
    """Up (3,) by the camera poses: perpendicular to the image rows where the camera turned around,
    as it then hardly rolls whatever its pitch; else the mean upward direction of the images."""
    mean = geometry.mean_up(T_world_camera_F44)
    x = T_world_camera_F44[:, :3, 0]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    up = vectors[:, 0] * np.sign(vectors[:, 0] @ mean or 1.0)
    turned_about = values[1] > 0.2 and values[0] < 0.25 * values[1]
    return up if turned_about and angle_deg(up, mean) < 35 else mean


def dominant_planes(
    reconstruction: Reconstruction, prior_3: np.ndarray, config: MetricConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (P, 3) of planes that are nearly level or nearly upright with respect to
    `prior_3`, and the share of points on each."""
    rng = np.random.default_rng(0)
    views = np.bincount(reconstruction.obs_point_M, minlength=len(reconstruction.points_N3))
    points = reconstruction.points_N3[views >= 3]
    points = points[rng.permutation(len(points))[:MAX_POINTS]]
    total, tolerance = len(points), config.plane_tolerance * median_depth(reconstruction)
    normals, support = [], []
    while len(normals) < MAX_PLANES and len(points) >= max(20, config.min_plane_share * total):
        plane = _largest_plane(points, prior_3, tolerance, config.max_tilt_deg, rng)
        if plane is None or plane[1].sum() < max(20, config.min_plane_share * total):
            break
        normals.append(plane[0])
        support.append(plane[1].sum() / total)
        points = points[~plane[1]]
    return np.array(normals).reshape(-1, 3), np.array(support)


def _largest_plane(
    points_N3: np.ndarray, prior_3: np.ndarray, tolerance: float, max_tilt_deg: float, rng
) -> tuple[np.ndarray, np.ndarray] | None:
    """Normal and members (N,) of the plane with most points among those of the wanted
    directions."""
    count = min(HYPOTHESES, len(points_N3))
    seeds = rng.permutation(len(points_N3))[:count]
    away = ((points_N3[seeds, None] - points_N3[None]) ** 2).sum(2)
    near = np.argpartition(away, min(NEIGHBOURS, len(points_N3) - 1), axis=1)[:, :NEIGHBOURS]
    pick = rng.integers(0, near.shape[1], (2, count))
    b, c = (points_N3[near[np.arange(count), k]] for k in pick)
    normals = np.cross(b - points_N3[seeds], c - points_N3[seeds])
    length = np.linalg.norm(normals, axis=1)
    normals = normals / np.maximum(length, 1e-12)[:, None]
    cosine = np.abs(normals @ prior_3)
    level = cosine > np.cos(np.radians(max_tilt_deg))
    wanted = (length > 1e-12) & (level | (cosine < np.sin(np.radians(max_tilt_deg))))
    if not wanted.any():
        return None
    seeds, normals = seeds[wanted], normals[wanted]
    members = np.abs(points_N3 @ normals.T - (points_N3[seeds] * normals).sum(1)) <= tolerance
    best = members[:, members.sum(0).argmax()]
    for _ in range(3):
        centre = points_N3[best].mean(0)
        normal = np.linalg.svd(points_N3[best] - centre, full_matrices=False)[2][2]
        refit = np.abs((points_N3 - centre) @ normal) <= tolerance
        if refit.sum() < 3:
            break
        best = refit
    return normal, best


def _up_of_planes(
    normals_P3: np.ndarray, support_P: np.ndarray, prior_3: np.ndarray, config: MetricConfig
):
    """The direction with which most points on planes agree, and their share; None where no level
    plane and no two walls in different directions agree."""
    cosine = normals_P3 @ prior_3
    level = np.abs(cosine) > np.cos(np.radians(config.max_tilt_deg))
    walls = normals_P3[~level]
    candidates = [n * np.sign(n @ prior_3) for n in normals_P3[level]]
    for i in range(len(walls)):
        for other in walls[i + 1 :]:
            n = np.cross(walls[i], other)
            if np.linalg.norm(n) > 0.5:  # 30 degrees between them
                candidates.append(n / np.linalg.norm(n) * np.sign(n @ prior_3))
    candidates = [c for c in candidates if angle_deg(c, prior_3) <= config.max_tilt_deg]
    if not candidates:
        return None
    agree = [_agrees(normals_P3, level, c, config.plane_agreement_deg) for c in candidates]
    # a direction at the limit of the tilt needs twice the points of one that the images agree with
    doubt = [1 - 0.5 * angle_deg(c, prior_3) / config.max_tilt_deg for c in candidates]
    best = int(np.argmax([support_P[a].sum() * d for a, d in zip(agree, doubt)]))
    used = agree[best]
    if support_P[used].sum() < config.min_up_share:
        return None
    weight_P = np.where(level, -support_P, support_P)[used]
    M = np.einsum("p,pi,pj->ij", weight_P, normals_P3[used], normals_P3[used])
    M -= 1e-3 * np.outer(candidates[best], candidates[best])  # decides what no plane determines
    up = np.linalg.eigh(M)[1][:, 0]
    return up * np.sign(up @ prior_3), float(support_P[used].sum())


def _agrees(
    normals_P3: np.ndarray, level_P: np.ndarray, up_3: np.ndarray, tolerance_deg: float
) -> np.ndarray:
    """Which planes (P,) are level or upright with respect to `up_3`, as they should be."""
    cosine, tolerance = np.abs(normals_P3 @ up_3), np.radians(tolerance_deg)
    return np.where(level_P, cosine >= np.cos(tolerance), cosine <= np.sin(tolerance))


def upright_rotation(up_3: np.ndarray, T_first: np.ndarray) -> np.ndarray:
    """R (3x3) into a frame with z up and x along the horizontal viewing direction of a camera
    (REP-103); of one that looks straight up or down, along the horizontal upward direction of its
    image."""
    z = up_3 / np.linalg.norm(up_3)
    level = np.eye(3) - np.outer(z, z)  # takes the vertical part of a vector away
    x = level @ T_first[:3, 2]
    if np.linalg.norm(x) < HORIZONTAL_SHARE:
        x = level @ -T_first[:3, 1]
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def angle_deg(a_3: np.ndarray, b_3: np.ndarray) -> float:
    """Between two directions, degrees."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a_3, b_3)), a_3 @ b_3)))
