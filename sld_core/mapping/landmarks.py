"""Reconstruction -> Landmarks: salient track points, spread over the scene (after SLD, Do et al., CVPR 2022, section 3.1)."""
from __future__ import annotations

import logging

import numpy as np

from sld_core.config import LandmarkConfig
from sld_core.types import Landmarks, Reconstruction, SldError

log = logging.getLogger(__name__)


def select(reconstruction: Reconstruction, config: LandmarkConfig, matchability_N: np.ndarray | None = None) -> Landmarks:
    """Up to config.count landmarks; the first n are those a selection of n would give.

    `matchability_N` in 0..1 says how well each point is told apart in the frozen features; it adds to the saliency."""
    candidates = np.flatnonzero(is_candidate(reconstruction, config))
    if len(candidates) < 20:
        raise SldError(f"only {len(candidates)} points are seen by {config.min_views} frames from {config.min_span_deg} degrees "
                       "apart; at least 20 are needed: record a slower drive with sideways motion, or more light")
    saliency = saliency_of(reconstruction)[candidates]
    if matchability_N is not None:
        saliency = saliency + matchability_N[candidates]
    order = candidates[np.argsort(-saliency, kind="stable")]
    chosen = spread(reconstruction.points_N3[order], config.count, config)
    log.info("%d landmarks of %d candidates", len(chosen), len(candidates))
    return Landmarks(reconstruction.points_N3[order[chosen]], order[chosen])


def is_candidate(reconstruction: Reconstruction, config: LandmarkConfig) -> np.ndarray:
    """Which points (N,) are seen often, precisely, and from far enough apart."""
    views = np.bincount(reconstruction.obs_point_M, minlength=len(reconstruction.points_N3))
    return ((views >= config.min_views) & (reconstruction.error_px_N < config.max_error_px)
            & (angular_span(reconstruction) > np.radians(config.min_span_deg)))


def saliency_of(reconstruction: Reconstruction) -> np.ndarray:
    """SLD's score (N,): depth spread + log track length + share of sessions + angular span."""
    r, n = reconstruction, len(reconstruction.points_N3)
    centre_F3 = np.stack([f.T_world_camera[:3, 3] for f in r.frames])
    axis_F3 = np.stack([f.T_world_camera[:3, 2] for f in r.frames])
    ray = r.points_N3[r.obs_point_M] - centre_F3[r.obs_frame_M]
    depth = np.einsum("mi,mi->m", ray, axis_F3[r.obs_frame_M])
    views = np.maximum(np.bincount(r.obs_point_M, minlength=n), 1)
    mean = np.bincount(r.obs_point_M, depth, n) / views
    variance = np.maximum(np.bincount(r.obs_point_M, depth**2, n) / views - mean**2, 0)
    sessions, session_F = np.unique([f.session for f in r.frames], return_inverse=True)
    pairs = np.unique(np.stack([r.obs_point_M, session_F[r.obs_frame_M]]), axis=1)
    share = np.bincount(pairs[0], minlength=n) / len(sessions)
    return np.minimum(1, np.sqrt(variance) / np.maximum(mean, 1e-6)) + np.log2(views) / 4 + share + angular_span(r)


def angular_span(reconstruction: Reconstruction) -> np.ndarray:
    """Largest angle (N,), radians, between a point's mean viewing direction and any of them, doubled."""
    r, n = reconstruction, len(reconstruction.points_N3)
    centre_F3 = np.stack([f.T_world_camera[:3, 3] for f in r.frames])
    ray = centre_F3[r.obs_frame_M] - r.points_N3[r.obs_point_M]
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12)
    mean = np.stack([np.bincount(r.obs_point_M, ray[:, k], n) for k in range(3)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.arccos(np.clip(np.einsum("mi,mi->m", ray, mean[r.obs_point_M]), -1, 1))
    span = np.zeros(n)
    np.maximum.at(span, r.obs_point_M, 2 * angle)
    return span


def spread(points_N3: np.ndarray, count: int, config: LandmarkConfig) -> np.ndarray:
    """Indices of up to `count` points in the order chosen: greedily by rank, none nearer to an earlier one than a
    spacing that shrinks from pass to pass until all are placed."""
    low, high = np.percentile(points_N3, [5, 95], axis=0)
    spacing = config.first_spacing * float(np.linalg.norm(high - low))
    nearest = np.full(len(points_N3), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(count, len(points_N3)):
        for i in range(len(points_N3)):
            if nearest[i] >= spacing and nearest[i] > 0:
                chosen.append(i)
                nearest = np.minimum(nearest, np.linalg.norm(points_N3 - points_N3[i], axis=1))
                if len(chosen) == count:
                    break
        spacing *= config.spacing_shrink
        if not (nearest > 0).any():
            break
    return np.array(chosen)
