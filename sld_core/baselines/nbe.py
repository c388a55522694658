"""NBE (Do et al., CVPR 2022): the bearings of all landmarks, visible or not, from the whole image
at once, beside SLD*'s detections.

Our form of it: frozen features averaged on a coarse grid, then a small network. A bearing is
accurate to degrees where a detection is accurate to pixels, so it only replaces landmarks that were
not detected, and its weight in the pose solve follows from its predicted sigma."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld_core import geometry
from sld_core.baselines.augmented_views import View, views
from sld_core.baselines.config import BearingConfig
from sld_core.baselines.loop import Budget, LossCurve, fit
from sld_core.baselines.sld_star import SldStar
from sld_core.config.scene import SceneConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening, limited
from sld_core.models.precision import autocast
from sld_core.training.feature_buffer import fit_whitening
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet, hold_out
from sld_core.training.working_images import unrotated
from sld_core.types import Camera, Detections, Progress

MIN_SIGMA_RAD, MAX_SIGMA_RAD = np.radians(0.5), np.radians(60.0)


# the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithBearings:
    """SLD* + NBE, as one baseline."""

    star: SldStar
    nbe: Bearings

    @property
    def ransac_px(self) -> float:
        """Loose enough for bearings to take part; the refinement's robust loss then gives most
        weight to the exact detections."""
        return self.nbe.config.ransac_px

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        detections, xyz_L3 = self.star.find(image_HW3, camera)
        bearing_L3, sigma_L = self.nbe.bearings(image_HW3)
        return joined(detections, bearing_L3, sigma_L, camera, self.nbe.config), xyz_L3


@dataclass(frozen=True)
class Bearings:
    """A trained network with its backbone."""

    backbone: Backbone
    whitening: Whitening
    network: BearingNetwork
    config: BearingConfig
    sigma_factor: float = 1.0  # by which errors in new frames exceed the predicted sigma

    @torch.inference_mode()
    def bearings(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit bearings (L, 3) in camera axes and their standard deviations (L,), radians, of one
        uint8 RGB image."""
        self.network.eval()
        features_Chw = self.backbone.features(image_HW3, self.backbone.device)
        grid_N = grid_features(features_Chw, self.whitening, self.config)
        bearing_1L3, log_sigma_1L = self.network(grid_N[None])
        sigma_L = log_sigma_1L[0].double().exp().cpu().numpy()
        return bearing_1L3[0].double().cpu().numpy(), self.sigma_factor * sigma_L


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

    def forward(self, grid_BN: Tensor) -> tuple[Tensor, Tensor]:
        out_BL4 = self.layers(grid_BN).float().unflatten(1, (-1, 4))
        log_sigma_BL = limited(out_BL4[..., 3] - 2, np.log(MIN_SIGMA_RAD), np.log(MAX_SIGMA_RAD))
        return F.normalize(out_BL4[..., :3], dim=-1), log_sigma_BL


def grid_features(features_Chw: Tensor, whitening: Whitening, config: BearingConfig) -> Tensor:
    """Whitened features, averaged over a grid of config.rows x config.columns: (N,)."""
    white_CN = whitening(features_Chw.flatten(1).T).T
    white_Chw = white_CN.unflatten(1, features_Chw.shape[1:])
    return F.adaptive_avg_pool2d(white_Chw, (config.rows, config.columns)).flatten()


def joined(
    detections: Detections,
    bearing_L3: np.ndarray,
    sigma_L: np.ndarray,
    camera: Camera,
    config: BearingConfig,
) -> Detections:
    """The detections, followed by bearings of landmarks that were not detected, most certain first.

    Bearings are used where they are in front of the camera, within max_angle_deg of its axis, and
    certain enough. Their scores lie below all detections'."""
    max_sigma = np.radians(config.max_sigma_deg)
    in_front = bearing_L3[:, 2] > np.cos(np.radians(config.max_angle_deg))
    usable = in_front & (sigma_L < max_sigma)
    usable[detections.landmark_K] = False
    landmark = np.flatnonzero(usable)
    landmark = landmark[np.argsort(sigma_L[landmark], kind="stable")]
    x, y, z = bearing_L3[landmark].T
    xy = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1)
    # the farther from the axis, the more pixels a degree has
    sigma_px = camera.fx * sigma_L[landmark] / z**2
    highest = 0.5 * detections.score_K.min(initial=1.0)
    score = highest * np.exp(-sigma_L[landmark] / max_sigma)
    return Detections(
        np.concatenate([detections.landmark_K, landmark]),
        np.concatenate([detections.xy_px_K2, xy]),
        np.concatenate([detections.score_K, score]),
        np.concatenate([detections.sigma_px_K, sigma_px]),
    )


# the recipe ---------------------------------------------------------------------------------------


def train(
    training_set: TrainingSet,
    backbone: Backbone,
    config: BearingConfig,
    scene: SceneConfig,
    run: Run,
) -> tuple[Bearings, LossCurve]:
    """Train the network on the features of all views, which config.seconds do not include. `scene`
    says how images are sized and augmented.

    The fraction config.held_out of the frames, in chunks, calibrates the predicted sigma: a network
    that has learned few views by heart is far too certain."""
    frames = training_set.frames
    whitening = fit_whitening(
        unrotated(frames, scene.image.max_side_px),
        backbone,
        replace(scene.buffer, channels=config.channels),
        run,
    )
    held_out = hold_out(len(frames), config.held_out)
    count = len(frames) * (1 + scene.buffer.augmented_passes)
    grids, bearings, learned = [], [], []
    for view in views(training_set, backbone, scene, run):
        grids.append(grid_features(view.features_Chw, whitening, config).half().cpu())
        bearings.append(torch.from_numpy(true_bearings(view, training_set).astype(np.float32)))
        learned.append(view.frame not in held_out)
        run.progress(Progress("filling the buffer of views", len(grids) / count))
    grid_VN, bearing_VL3, learned_V = (
        torch.stack(grids),
        torch.stack(bearings),
        torch.tensor(learned),
    )
    rows = torch.nonzero(learned_V)[:, 0]

    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    network = BearingNetwork(grid_VN.shape[1], bearing_VL3.shape[1], config).to(run.device).train()

    def batch_loss(done: float) -> Tensor:
        pick = rows[torch.randint(len(rows), (config.batch,), generator=generator)]
        with autocast(run.device):
            bearing, log_sigma = network(grid_VN[pick].to(run.device).float())
        return bearing_loss(bearing, log_sigma, bearing_VL3[pick].to(run.device))

    curve = fit(network, batch_loss, config.schedule, Budget(config.steps, config.seconds), run)
    network.eval()
    sigma_factor = calibrate_sigma(
        network, grid_VN[~learned_V].to(run.device), bearing_VL3[~learned_V].to(run.device)
    )
    return Bearings(backbone, whitening, network, config, sigma_factor), curve


@torch.inference_mode()
def calibrate_sigma(network: nn.Module, grid_VN: Tensor, true_VL3: Tensor) -> float:
    """The factor by which the errors of views exceed the predicted sigmas, at the median; at least
    1, and 1 without views. The median of two normal angles is sqrt(2 log 2) = 1.18 sigma."""
    if len(grid_VN) == 0:
        return 1.0
    bearing, log_sigma = network(grid_VN.float())
    ratio = (bearing - true_VL3).norm(dim=-1) / log_sigma.exp()
    return max(1.0, float(ratio.median()) / math.sqrt(2 * math.log(2)))


def true_bearings(view: View, training_set: TrainingSet) -> np.ndarray:
    """Unit directions (L, 3) in camera axes of all landmarks in a view, also of those behind the
    camera.

    An image warped by H is what a camera would see that sees K^-1 H K x where the frame's own sees
    x."""
    T_camera_world = geometry.invert(training_set.frames[view.frame].T_world_camera)
    xyz_L3 = geometry.transform(T_camera_world, training_set.landmarks.xyz_L3)
    K = view.camera.K
    bearing_L3 = xyz_L3 @ (np.linalg.inv(K) @ view.warp_33 @ K).T
    return bearing_L3 / np.linalg.norm(bearing_L3, axis=1, keepdims=True)


def bearing_loss(bearing_BL3: Tensor, log_sigma_BL: Tensor, true_BL3: Tensor) -> Tensor:
    """Mean negative log-likelihood of the two angles between predicted and true bearings, normal
    with the predicted sigma."""
    error2 = (bearing_BL3 - true_BL3).square().sum(-1)  # of the chord: radians where it is small
    return (0.5 * error2 * (-2 * log_sigma_BL).exp() + 2 * log_sigma_BL).mean()
