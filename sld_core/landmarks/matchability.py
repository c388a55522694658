"""How well each point is told apart in the frozen features, before anything is trained.

A point's prototype is the mean of its features in a few images, as the first state of a head has
it. It must find its cell in an image that had no part in it, among that image's other cells and the
prototypes of other points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from sld_core import heatmap
from sld_core.camera.images import load_upright
from sld_core.config.scene import ImageConfig, LandmarkConfig
from sld_core.landmarks.selection import is_candidate
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.types import Frame, Progress, Reconstruction

CHANNELS = 128  # after the whitened projection
NEAR_CELL = 3.0  # cells nearer than this to the right one are no rivals
NEAR_POINT = 0.02  # of the diameter of the scene's points: nor are points nearer than this


def matchability(
    reconstruction: Reconstruction,
    backbone: Backbone,
    image_config: ImageConfig,
    device: str,
    rng: np.random.Generator,
    progress: Callable[[Progress], None],
    config: LandmarkConfig,
    angle_rad_F: np.ndarray | None = None,
) -> np.ndarray:
    """Probability (N,) in 0..1 that a point is found where it is: mean over views of the softmax of
    cosines at the right cell. 0 for points that are no candidates; the median of the others where
    too few of the chosen images see a candidate.

    The backbone runs once over config.matchability_frames images, each turned upright by its angle
    (radians)."""
    r = reconstruction
    angle_rad_F = np.zeros(len(r.frames)) if angle_rad_F is None else angle_rad_F
    candidate_N = is_candidate(r, config)
    obs_M = np.flatnonzero(candidate_N[r.obs_point_M])
    chosen = covering_frames(r.obs_point_M[obs_M], r.obs_frame_M[obs_M], len(r.frames), config)
    views = []  # per image: its cells' features, and which cell shows which point
    for k, i in enumerate(chosen):
        mine = obs_M[r.obs_frame_M[obs_M] == i]
        views.append(
            (
                *_look(
                    r.frames[i], r.obs_xy_M2[mine], angle_rad_F[i], backbone, image_config, device
                ),
                r.obs_point_M[mine],
            )
        )
        progress(Progress("comparing points", (k + 1) / len(chosen)))
    if not views:
        return np.zeros(len(r.points_N3))
    views = _whitened(views, rng)
    out = _score(views, r.points_N3, rng, config)
    unknown = candidate_N & np.isnan(out)
    out[unknown] = np.nanmedian(out[candidate_N]) if (candidate_N & ~unknown).any() else 0.0
    out[~candidate_N] = 0.0
    return out


def covering_frames(
    obs_point_M: np.ndarray, obs_frame_M: np.ndarray, frames: int, config: LandmarkConfig
) -> list[int]:
    """Frames chosen one by one, each the one that sees most points not yet seen by
    config.matchability_views of them."""
    seen_N = np.zeros(obs_point_M.max(initial=-1) + 1, int)
    left_F, chosen = np.ones(frames, bool), []
    while len(chosen) < min(config.matchability_frames, frames):
        gain_F = (
            np.bincount(obs_frame_M, seen_N[obs_point_M] < config.matchability_views, frames)
            * left_F
        )
        best = int(gain_F.argmax())
        if gain_F[best] == 0:
            break
        left_F[best] = False
        chosen.append(best)
        seen_N[obs_point_M[obs_frame_M == best]] += 1
    return sorted(chosen)


def _look(
    frame: Frame,
    xy_K2: np.ndarray,
    angle_rad: float,
    backbone: Backbone,
    image_config: ImageConfig,
    device: str,
) -> tuple[torch.Tensor, np.ndarray, int]:
    """Features of all cells (n, C) in half precision, the flat cell (K,) of each pixel position,
    and the cells in a row."""
    image, A = load_upright(frame, image_config.max_side_px, angle_rad)
    features_Chw = backbone.features(image, device)
    _, h, w = features_Chw.shape
    xy = np.round(heatmap.pixel_to_cell(xy_K2 @ A[:, :2].T + A[:, 2])).astype(int)
    cell = np.clip(xy[:, 1], 0, h - 1) * w + np.clip(xy[:, 0], 0, w - 1)
    return features_Chw.flatten(1).T.half().cpu(), cell, w


def _whitened(views: list[tuple], rng: np.random.Generator) -> list[tuple]:
    """The same with unit features in the space in which heads compare them."""
    pick = lambda f: f[torch.from_numpy(rng.integers(0, len(f), 600))].float()
    whitening = Whitening.fit(
        torch.cat([pick(features) for features, *_ in views]), min(CHANNELS, views[0][0].shape[1])
    )
    return [(F.normalize(whitening(features.float()), dim=1), *rest) for features, *rest in views]


def _score(
    views: list[tuple], points_N3: np.ndarray, rng: np.random.Generator, config: LandmarkConfig
) -> np.ndarray:
    """Mean probability (N,) of the right cell, leaving out of each prototype the view that is
    looked at; NaN where fewer than two views see the point."""
    n, channels = len(points_N3), views[0][0].shape[1]
    total_NC, count_N = torch.zeros(n, channels), np.zeros(n)
    for features, cell, _, point in views:
        total_NC.index_add_(0, torch.from_numpy(point), features[torch.from_numpy(cell)])
        np.add.at(count_N, point, 1)
    known = np.flatnonzero(count_N)
    rivals = rng.choice(known, min(config.matchability_rivals, len(known)), replace=False)
    rival_RC = F.normalize(total_NC[torch.from_numpy(rivals)], dim=1)
    near_m = NEAR_POINT * float(
        np.linalg.norm(np.subtract(*np.percentile(points_N3[known], [95, 5], axis=0)))
    )
    summed_N, used_N = np.zeros(n), np.zeros(n)
    for features, cell, width, point in views:
        good = count_N[point] >= 2
        cell, point = cell[good], point[good]
        own_KC = features[torch.from_numpy(cell)]
        others_KC = F.normalize(total_NC[torch.from_numpy(point)] - own_KC, dim=1)
        right = _mass((own_KC * others_KC).sum(1), config)
        # all rivals share the probability with the right cell; a sample of the image's cells stands
        # for all of them
        sampled = rng.choice(
            len(features), min(config.matchability_rivals, len(features)), replace=False
        )
        apart = _cells_apart(cell, sampled, width)
        wrong_cell = (_mass(others_KC @ features[torch.from_numpy(sampled)].T, config) * apart).sum(
            1
        ) * (len(features) / len(sampled))
        apart = torch.from_numpy(
            np.linalg.norm(points_N3[point][:, None] - points_N3[rivals][None], axis=2) > near_m
        )
        wrong_point = (_mass(own_KC @ rival_RC.T, config) * apart).sum(1)
        np.add.at(summed_N, point, (right / (right + wrong_cell + wrong_point)).double().numpy())
        np.add.at(used_N, point, 1)
    with np.errstate(invalid="ignore"):
        return summed_N / np.where(used_N, used_N, np.nan)


def _mass(cosine: torch.Tensor, config: LandmarkConfig) -> torch.Tensor:
    return ((cosine - 1) / config.matchability_temperature).exp()


def _cells_apart(cell_K: np.ndarray, other_S: np.ndarray, width: int) -> torch.Tensor:
    """Which cells (K, S) are NEAR_CELL or more apart."""
    dx = cell_K[:, None] % width - other_S[None] % width
    dy = cell_K[:, None] // width - other_S[None] // width
    return torch.from_numpy(dx**2 + dy**2 >= NEAR_CELL**2)
