"""How well each point can be told apart in the frozen features, before anything is trained.

A point's prototype is the mean of its features in a few images, as a head has it before training.
It must find its cell in an image that the prototype was not made from, among that image's other
cells and the prototypes of other points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from sld_core import heatmap
from sld_core.camera.images import load_upright
from sld_core.config.scene import LandmarkConfig
from sld_core.landmarks.selection import is_candidate
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.types import Progress, Reconstruction

CHANNELS = 128  # after the whitened projection
NEAR_CELL = 3.0  # cells nearer than this to the right one are no rivals
NEAR_POINT = 0.02  # of the diameter of the scene's points: nor are points nearer than this


@dataclass(frozen=True)
class _View:
    """The features of all cells of one image, `width` cells in a row, and in which cell it shows
    which points."""

    features_NC: torch.Tensor
    width: int
    cell_K: np.ndarray
    point_K: np.ndarray


def matchability(
    reconstruction: Reconstruction,
    backbone: Backbone,
    max_side_px: int,
    config: LandmarkConfig,
    rng: np.random.Generator,
    progress: Callable[[Progress], None] = lambda _: None,
    angle_rad_F: np.ndarray | None = None,
) -> np.ndarray:
    """Probability (N,) in 0..1 that a point is found where it is: mean over views of the softmax of
    cosines at the right cell. 0 for points that are no candidates; candidates that too few of the
    chosen images see get the median of the others.

    The backbone runs once over config.matchability_frames images of at most `max_side_px`, each
    turned upright by its angle (radians)."""
    r = reconstruction
    angle_rad_F = np.zeros(len(r.frames)) if angle_rad_F is None else angle_rad_F
    candidate_N = is_candidate(r, config)
    obs_M = np.flatnonzero(candidate_N[r.obs_point_M])
    chosen = covering_frames(r.obs_point_M[obs_M], r.obs_frame_M[obs_M], len(r.frames), config)
    views = []
    for k, i in enumerate(chosen):
        mine = obs_M[r.obs_frame_M[obs_M] == i]
        image, A = load_upright(r.frames[i], max_side_px, angle_rad_F[i])
        features_Chw = backbone.features(image, backbone.device)
        xy_K2 = r.obs_xy_M2[mine] @ A[:, :2].T + A[:, 2]
        views.append(_view(features_Chw, xy_K2, r.obs_point_M[mine]))
        progress(Progress("comparing points", (k + 1) / len(chosen)))
    if not views:
        return np.zeros(len(r.points_N3))
    out = _score(_whitened(views, rng), r.points_N3, rng, config)
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
        wanted_M = seen_N[obs_point_M] < config.matchability_views
        gain_F = np.where(left_F, np.bincount(obs_frame_M, wanted_M, frames), 0)
        best = int(gain_F.argmax())
        if gain_F[best] == 0:
            break
        left_F[best] = False
        chosen.append(best)
        seen_N[obs_point_M[obs_frame_M == best]] += 1
    return sorted(chosen)


def _view(features_Chw: torch.Tensor, xy_K2: np.ndarray, point_K: np.ndarray) -> _View:
    """Features in half precision; points at pixels `xy_K2` of the image."""
    _, h, w = features_Chw.shape
    xy = np.round(heatmap.pixel_to_cell(xy_K2)).astype(int)
    cell_K = np.clip(xy[:, 1], 0, h - 1) * w + np.clip(xy[:, 0], 0, w - 1)
    return _View(features_Chw.flatten(1).T.half().cpu(), w, cell_K, point_K)


def _whitened(views: list[_View], rng: np.random.Generator) -> list[_View]:
    """The same with unit features in the space in which heads compare them."""
    sample = []
    for view in views:
        drawn = torch.from_numpy(rng.integers(0, len(view.features_NC), 600))
        sample.append(view.features_NC[drawn].float())
    whitening = Whitening.fit(torch.cat(sample), min(CHANNELS, sample[0].shape[1]))
    return [
        replace(view, features_NC=F.normalize(whitening(view.features_NC.float()), dim=1))
        for view in views
    ]


def _score(
    views: list[_View], points_N3: np.ndarray, rng: np.random.Generator, config: LandmarkConfig
) -> np.ndarray:
    """Mean probability (N,) of the right cell, where the view in question is left out of each
    prototype; NaN where fewer than two views see the point."""
    n, channels = len(points_N3), views[0].features_NC.shape[1]
    total_NC, count_N = torch.zeros(n, channels), np.zeros(n)
    for view in views:
        own_KC = view.features_NC[torch.from_numpy(view.cell_K)]
        total_NC.index_add_(0, torch.from_numpy(view.point_K), own_KC)
        np.add.at(count_N, view.point_K, 1)
    known = np.flatnonzero(count_N)
    rivals = rng.choice(known, min(config.matchability_rivals, len(known)), replace=False)
    rival_RC = F.normalize(total_NC[torch.from_numpy(rivals)], dim=1)
    low, high = np.percentile(points_N3[known], [5, 95], axis=0)
    near_m = NEAR_POINT * float(np.linalg.norm(high - low))
    summed_N, used_N = np.zeros(n), np.zeros(n)
    for view in views:
        features_NC, cells = view.features_NC, len(view.features_NC)
        good = count_N[view.point_K] >= 2
        cell, point = view.cell_K[good], view.point_K[good]
        own_KC = features_NC[torch.from_numpy(cell)]
        others_KC = F.normalize(total_NC[torch.from_numpy(point)] - own_KC, dim=1)
        right = _mass((own_KC * others_KC).sum(1), config)
        # all rivals share the probability with the right cell; a sample of the image's cells stands
        # for all of them
        sampled = rng.choice(cells, min(config.matchability_rivals, cells), replace=False)
        apart = _cells_apart(cell, sampled, view.width)
        mass_KS = _mass(others_KC @ features_NC[torch.from_numpy(sampled)].T, config)
        wrong_cell = torch.where(apart, mass_KS, 0).sum(1) * (cells / len(sampled))
        distance = np.linalg.norm(points_N3[point][:, None] - points_N3[rivals][None], axis=2)
        mass_KR = _mass(own_KC @ rival_RC.T, config)
        wrong_point = torch.where(torch.from_numpy(distance > near_m), mass_KR, 0).sum(1)
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
