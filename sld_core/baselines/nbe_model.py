"""NBE (Do et al., CVPR 2022): the bearings of all landmarks, seen or not, from the whole image at
once, beside SLD*'s detections.

Our form of it: frozen features averaged on a coarse grid, then a small network. A bearing is right
to degrees where a detection is right to pixels, so it only stands in for landmarks that were not
detected, and counts in the pose solve as it is certain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core.baselines.sld_star_model import SldStar
from sld_core.config.training import BearingConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening, limited
from sld_core.types import Camera, Detections

MIN_SIGMA_RAD, MAX_SIGMA_RAD = np.radians(0.5), np.radians(60.0)


class BearingNetwork(nn.Module):
    """Grid features (B, N) -> unit bearings (B, L, 3) in camera axes and log of their standard
    deviations (B, L), radians per axis."""

    def __init__(self, inputs: int, landmarks: int, config: BearingConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(inputs, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, 4 * landmarks),
        )

    def forward(self, grid_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out_BL4 = self.layers(grid_BN).float().unflatten(1, (-1, 4))
        return F.normalize(out_BL4[..., :3], dim=-1), limited(
            out_BL4[..., 3] - 2, np.log(MIN_SIGMA_RAD), np.log(MAX_SIGMA_RAD)
        )


def grid_features(
    features_Chw: torch.Tensor, whitening: Whitening, config: BearingConfig
) -> torch.Tensor:
    """Whitened features, averaged over a grid of config.rows x config.columns: (N,)."""
    white_CN = whitening(features_Chw.flatten(1).T).T
    return F.adaptive_avg_pool2d(
        white_CN.unflatten(1, features_Chw.shape[1:]), (config.rows, config.columns)
    ).flatten()


@dataclass(frozen=True)
class Bearings:
    """A trained network with its backbone."""

    backbone: Backbone
    whitening: Whitening
    network: BearingNetwork
    config: BearingConfig
    doubt: float = 1.0  # by which errors in frames it has not seen are larger than it thinks

    @torch.inference_mode()
    def bearings(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit bearings (L, 3) in camera axes and their standard deviations (L,), radians, of one
        uint8 RGB image."""
        self.network.eval()
        features_Chw = self.backbone.features(image_HW3, self.backbone.device)
        bearing, log_sigma = self.network(
            grid_features(features_Chw, self.whitening, self.config)[None]
        )
        return bearing[0].double().cpu().numpy(), self.doubt * log_sigma[
            0
        ].double().exp().cpu().numpy()


@dataclass(frozen=True)
class WithBearings:
    """SLD* + NBE (a peers.Baseline)."""

    star: SldStar
    nbe: Bearings

    @property
    def ransac_px(self) -> float:
        """So loose that bearings take part; the refinement's robust loss then leaves the last word
        to what is exact."""
        return self.nbe.config.ransac_px

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        detections, xyz_L3 = self.star.find(image_HW3, camera)
        return joined(detections, *self.nbe.bearings(image_HW3), camera, self.nbe.config), xyz_L3


def joined(
    detections: Detections,
    bearing_L3: np.ndarray,
    sigma_L: np.ndarray,
    camera: Camera,
    config: BearingConfig,
) -> Detections:
    """The detections, then the bearings of landmarks that were not detected as if they were, most
    certain first: only those in front of the camera, within max_angle_deg of its axis, and certain
    enough. Their scores lie below all detections'."""
    usable = (bearing_L3[:, 2] > np.cos(np.radians(config.max_angle_deg))) & (
        sigma_L < np.radians(config.max_sigma_deg)
    )
    usable[detections.landmark_K] = False
    landmark = np.flatnonzero(usable)
    landmark = landmark[np.argsort(sigma_L[landmark], kind="stable")]
    x, y, z = bearing_L3[landmark].T
    xy = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1)
    sigma_px = (
        camera.fx * sigma_L[landmark] / z**2
    )  # the farther from the axis, the more pixels a degree has
    score = (
        0.5
        * detections.score_K.min(initial=1.0)
        * np.exp(-sigma_L[landmark] / np.radians(config.max_sigma_deg))
    )
    both = (
        (detections.landmark_K, landmark),
        (detections.xy_px_K2, xy),
        (detections.score_K, score),
        (detections.sigma_px_K, sigma_px),
    )
    return Detections(*map(np.concatenate, both))
