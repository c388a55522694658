"""Reconstruction -> Landmarks: salient track points, spread over the scene (after SLD, Do et al.,
CVPR 2022, section 3.1)."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from sld_core.config.scene import MIN_LANDMARKS, LandmarkConfig
from sld_core.types import Landmarks, Reconstruction, SldError

log = logging.getLogger(__name__)


def select(
    reconstruction: Reconstruction, config: LandmarkConfig, matchability_N: np.ndarray | None = None
) -> Landmarks:
    """`config.count` landmarks, or as many as the place needs; the first n are those that a
    selection of n would give.

    Only the frames and observations of `reconstruction` count: pass those of the training images
    alone. `matchability_N` (0..1, landmarks.matchability) says how well each point can be told
    apart in the frozen features; weighted, it adds to the saliency. The order in which points come
    does not matter."""
    candidate_N = is_candidate(reconstruction, config)
    if candidate_N.sum() < MIN_LANDMARKS:
        raise SldError(
            f"only {candidate_N.sum()} points are seen by {config.min_views} frames from "
            f"{config.min_span_deg} degrees apart; at least {MIN_LANDMARKS} are needed: record a "
            "slower drive with sideways motion, or more light"
        )
    saliency_N = saliency_of(reconstruction)
    if matchability_N is not None:
        saliency_N = saliency_N + config.matchability_weight * matchability_N
    xyz_N3 = reconstruction.points_N3
    candidates = _by_saliency(np.flatnonzero(candidate_N), saliency_N, xyz_N3)
    count = config.count or config.base_count
    chosen = candidates[spread(xyz_N3[candidates], count, config)]
    if not config.count:
        rarer = replace(config, min_views=min(config.fallback_views, config.min_views))
        for group_N in (candidate_N, is_candidate(reconstruction, rarer)):
            group = _by_saliency(np.flatnonzero(group_N), saliency_N, xyz_N3)
            chosen = _fill_views(reconstruction, group, chosen, config)
    log.info("%d landmarks of %d candidates", len(chosen), len(candidates))
    return Landmarks(xyz_N3[chosen], chosen)


def in_sight(reconstruction: Reconstruction, chosen: np.ndarray) -> np.ndarray:
    """How many of the points `chosen` each frame sees (F,), by their tracks."""
    mine_M = np.isin(reconstruction.obs_point_M, chosen)
    return np.bincount(reconstruction.obs_frame_M[mine_M], minlength=len(reconstruction.frames))


def _by_saliency(points: np.ndarray, saliency_N: np.ndarray, xyz_N3: np.ndarray) -> np.ndarray:
    """Points from the most salient to the least."""
    # rounded, for sums depend on the order of their terms in the last digits; then ties by position
    x, y, z = xyz_N3[points].T
    return points[np.lexsort((z, y, x, -np.round(saliency_N[points], 9)))]


def _fill_views(
    r: Reconstruction, candidates: np.ndarray, chosen: np.ndarray, config: LandmarkConfig
) -> np.ndarray:
    """`chosen` with more candidates, well spread, that frames with too few landmarks see."""
    count_F = in_sight(r, chosen)
    poor_M = (count_F < config.per_view)[r.obs_frame_M]
    more = candidates[np.isin(candidates, r.obs_point_M[poor_M]) & ~np.isin(candidates, chosen)]
    if len(more) == 0:
        return chosen
    more = more[spread(r.points_N3[more], len(more), config)]
    order = np.argsort(r.obs_point_M, kind="stable")
    bounds = np.searchsorted(r.obs_point_M[order], np.arange(len(r.points_N3) + 1))
    added = []
    for point in more:
        if len(chosen) + len(added) >= config.max_count:
            break
        frames = np.unique(r.obs_frame_M[order[bounds[point] : bounds[point + 1]]])
        if (count_F[frames] < config.per_view).any():
            count_F[frames] += 1
            added.append(point)
    return np.concatenate([chosen, np.array(added, chosen.dtype)])


def is_candidate(reconstruction: Reconstruction, config: LandmarkConfig) -> np.ndarray:
    """Which points (N,) are seen often, precisely, and from far enough apart."""
    views = np.bincount(reconstruction.obs_point_M, minlength=len(reconstruction.points_N3))
    return (
        (views >= config.min_views)
        & (reprojection_px(reconstruction) < config.max_error_px)
        & (angular_span(reconstruction) > np.radians(config.min_span_deg))
    )


def reprojection_px(reconstruction: Reconstruction) -> np.ndarray:
    """Mean distance (N,) in pixels of each point's projections from its observations; infinite
    where it has none. `error_px_N` may include images that were left out since."""
    r, n = reconstruction, len(reconstruction.points_N3)
    R_F33 = np.stack([f.T_world_camera[:3, :3] for f in r.frames])
    focal_F2 = np.array([(f.camera.fx, f.camera.fy) for f in r.frames])
    centre_F2 = np.array([(f.camera.cx, f.camera.cy) for f in r.frames])
    ray_M3 = np.einsum("mij,mi->mj", R_F33[r.obs_frame_M], _rays(r))
    with np.errstate(divide="ignore", invalid="ignore"):
        xy_M2 = ray_M3[:, :2] / ray_M3[:, 2:] * focal_F2[r.obs_frame_M] + centre_F2[r.obs_frame_M]
        error_M = np.linalg.norm(xy_M2 - r.obs_xy_M2, axis=1)
        error_M[~(ray_M3[:, 2] > 0)] = np.inf
        mean_N = np.bincount(r.obs_point_M, error_M, n) / np.bincount(r.obs_point_M, minlength=n)
    return np.where(np.isnan(mean_N), np.inf, mean_N)


def saliency_of(reconstruction: Reconstruction) -> np.ndarray:
    """SLD's score (N,): depth spread + log track length + share of sessions + angular span."""
    r, n = reconstruction, len(reconstruction.points_N3)
    axis_F3 = np.stack([f.T_world_camera[:3, 2] for f in r.frames])
    depth = np.einsum("mi,mi->m", _rays(r), axis_F3[r.obs_frame_M])
    views = np.maximum(np.bincount(r.obs_point_M, minlength=n), 1)
    mean = np.bincount(r.obs_point_M, depth, n) / views
    variance = np.maximum(np.bincount(r.obs_point_M, depth**2, n) / views - mean**2, 0)
    sessions, session_F = np.unique([f.session for f in r.frames], return_inverse=True)
    pairs = np.unique(r.obs_point_M.astype(np.int64) * len(sessions) + session_F[r.obs_frame_M])
    share = np.bincount(pairs // len(sessions), minlength=n) / len(sessions)
    return (
        np.minimum(1, np.sqrt(variance) / np.maximum(mean, 1e-6))
        + np.log2(views) / 4
        + share
        + angular_span(r)
    )


def angular_span(reconstruction: Reconstruction) -> np.ndarray:
    """Twice the largest angle (N,), radians, between a point's mean viewing direction and any of
    its viewing directions."""
    r, n = reconstruction, len(reconstruction.points_N3)
    ray = -_rays(r)
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12)
    mean = np.stack([np.bincount(r.obs_point_M, ray[:, k], n) for k in range(3)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.arccos(np.clip(np.einsum("mi,mi->m", ray, mean[r.obs_point_M]), -1, 1))
    span = np.zeros(n)
    np.maximum.at(span, r.obs_point_M, 2 * angle)
    return span


def _rays(r: Reconstruction) -> np.ndarray:
    """From the camera to the point (M, 3) of each observation, world metres."""
    centre_F3 = np.stack([f.T_world_camera[:3, 3] for f in r.frames])
    return r.points_N3[r.obs_point_M] - centre_F3[r.obs_frame_M]


def spread(points_N3: np.ndarray, count: int, config: LandmarkConfig) -> np.ndarray:
    """Indices of up to `count` points in the order chosen: in passes by rank, each taking points
    that are at least a spacing away from all taken before; the spacing shrinks from pass to pass
    until all are placed."""
    low, high = np.percentile(points_N3, [5, 95], axis=0)
    spacing2 = (config.first_spacing * float(np.linalg.norm(high - low))) ** 2
    # one by one: three times faster than rows of three
    axes = [np.ascontiguousarray(points_N3[:, k]) for k in range(3)]
    nearest2 = np.full(len(points_N3), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(count, len(points_N3)) and (nearest2 > 0).any():
        i = _next(nearest2, spacing2, 0)
        while i >= 0 and len(chosen) < count:
            chosen.append(i)
            np.minimum(nearest2, sum((axis - axis[i]) ** 2 for axis in axes), out=nearest2)
            i = _next(nearest2, spacing2, i + 1)
        spacing2 *= config.spacing_shrink**2
    return np.array(chosen)


def _next(nearest2_N: np.ndarray, spacing2: float, start: int) -> int:
    """The first index from `start` on that keeps its distance, or -1."""
    free = nearest2_N[start:] >= max(spacing2, np.finfo(float).tiny)
    return start + int(free.argmax()) if free.any() else -1
