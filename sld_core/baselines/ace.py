"""An ACE-like head (Brachmann et al., CVPR 2023) on our features: the scene coordinate of every
cell, and the pose from all of them. It stores no landmarks; it shows what a head on frozen features
can do in equal time.

As in ACE, training uses neither depth nor points, only the reprojection error of each cell, under a
robust loss that tightens; a point behind or far from the camera's view is first drawn to a
plausible depth on its ray."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld_core import geometry
from sld_core.baselines.augmented_views import View, views
from sld_core.baselines.config import CoordinateConfig
from sld_core.baselines.loop import Budget, LossCurve, fit
from sld_core.config.scene import SceneConfig
from sld_core.heatmap import cell_to_pixel
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.models.precision import autocast
from sld_core.training.feature_buffer import fit_whitening
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import unrotated
from sld_core.types import Camera, Detections, Progress

NEAR = 0.02  # of the scene's typical depth: nearer, a reprojection error says nothing


# the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coordinates:
    """A trained head with its backbone, as a baseline."""

    backbone: Backbone
    whitening: Whitening
    head: CoordinateHead
    config: CoordinateConfig

    @property
    def ransac_px(self) -> float:
        return self.config.ransac_px

    @torch.inference_mode()
    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Every cell as a detection of its own point, in random order, because RANSAC tries the
        first ones first."""
        device = self.head.centre.device
        features_Chw = self.backbone.features(image_HW3, str(device))
        with autocast(device):
            xyz_N3 = self.head(self.whitening(features_Chw.flatten(1).T))
        n = len(xyz_N3)
        order = np.random.default_rng(0).permutation(n)
        xy_N2 = cell_centres(features_Chw.shape[1:])[order]
        cells = Detections(np.arange(n), xy_N2, np.ones(n), np.full(n, self.config.cell_px))
        return cells, xyz_N3.cpu().numpy().astype(float)[order]


class CoordinateHead(nn.Module):
    """Whitened features (N, C) -> points (N, 3) in the training set's coordinates, by a 1x1 network
    with residual blocks.

    The last layer is in units of `spread` around `centre_3`, so that position and size of the scene
    need not be learned."""

    def __init__(
        self, channels: int, config: CoordinateConfig, centre_3: np.ndarray, spread: float
    ):
        super().__init__()
        width = config.hidden
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(config.blocks)
        )
        self.last = nn.Linear(width, 3)
        self.register_buffer("centre", torch.tensor(centre_3, dtype=torch.float32))
        self.spread = spread

    def forward(self, cells_NC: Tensor) -> Tensor:
        x = F.relu(self.first(cells_NC))
        for block in self.blocks:
            x = F.relu(x + block(x))
        # bfloat16 would round coordinates of a room to a centimetre
        with torch.autocast(x.device.type, enabled=False):
            return self.last(x.float()) * self.spread + self.centre


def cell_centres(shape_hw: tuple[int, int]) -> np.ndarray:
    """Pixels (h * w, 2), corner origin, row by row."""
    h, w = shape_hw
    y, x = np.mgrid[:h, :w]
    return cell_to_pixel(np.stack([x.ravel(), y.ravel()], 1).astype(float))


# the recipe ---------------------------------------------------------------------------------------

Watch = Callable[[int, float, Coordinates], None]  # steps, seconds of training, the model as it is


@dataclass(frozen=True)
class RayBuffer:
    """Cells of all views: whitened `feature_NC` (float16), `frame_N`, and `ray_N2`, the direction
    (x, y, 1) of the cell's centre in the frame's camera. Of each frame: `T_camera_world_F44`,
    `focal_F2` (pixels at working size), and `depth_F`, the typical depth of what it shows."""

    feature_NC: Tensor
    frame_N: Tensor
    ray_N2: Tensor
    T_camera_world_F44: Tensor
    focal_F2: Tensor
    depth_F: Tensor

    def __len__(self) -> int:
        return len(self.frame_N)


def train(
    training_set: TrainingSet,
    backbone: Backbone,
    config: CoordinateConfig,
    scene: SceneConfig,
    run: Run,
    watch: Watch = lambda *_: None,
) -> tuple[Coordinates, LossCurve]:
    """Train the head on random cells of all views; config.seconds do not include filling the
    buffer. `scene` says how images are sized and augmented."""
    buffer, whitening = fill(training_set, backbone, config, scene, run)
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    xyz_L3 = training_set.landmarks.xyz_L3
    centre_3, spread = np.median(xyz_L3, 0), float(xyz_L3.std())
    head = CoordinateHead(buffer.feature_NC.shape[1], config, centre_3, spread).to(run.device)
    model = Coordinates(backbone, whitening, head, config)

    def batch_loss(done: float) -> Tensor:
        pick = torch.randint(len(buffer), (config.batch,), generator=generator)
        frame = buffer.frame_N[pick]
        with autocast(run.device):
            xyz_N3 = head(buffer.feature_NC[pick].to(run.device).float())
        # the loss tightens on a circular schedule, as in ACE
        range_px = config.loose_px - config.tight_px
        return reprojection_loss(
            xyz_N3,
            buffer.ray_N2[pick].to(run.device),
            buffer.T_camera_world_F44[frame].to(run.device),
            buffer.focal_F2[frame].to(run.device),
            buffer.depth_F[frame].to(run.device),
            scale_px=config.tight_px + range_px * math.sqrt(1 - done**2),
            far_px=config.far_px,
        )

    curve = fit(
        head,
        batch_loss,
        config.schedule,
        Budget(config.steps, config.seconds),
        run,
        lambda step, seconds: watch(step, seconds, model),
        config.watch_steps,
    )
    return model, curve


def fill(
    training_set: TrainingSet,
    backbone: Backbone,
    config: CoordinateConfig,
    scene: SceneConfig,
    run: Run,
) -> tuple[RayBuffer, Whitening]:
    """Take config.cells random cells of every view, without those outside the frame."""
    frames = training_set.frames
    images = unrotated(frames, scene.image.max_side_px)
    whitening = fit_whitening(images, backbone, scene.buffer, run)
    count = len(frames) * (1 + scene.buffer.augmented_passes)
    features, frame_of_cells, rays, focal_F2 = [], [], [], np.zeros((len(frames), 2))
    for view in views(training_set, backbone, scene, run):
        feature_NC, ray_N2 = cells_of(view, whitening, config.cells)
        features.append(feature_NC)
        rays.append(ray_N2)
        frame_of_cells.append(torch.full((len(ray_N2),), view.frame))
        focal_F2[view.frame] = view.camera.fx, view.camera.fy
        run.progress(Progress("filling the buffer of rays", len(features) / count))
    T_F44 = np.stack([geometry.invert(f.T_world_camera) for f in frames])
    xyz_L3 = training_set.landmarks.xyz_L3
    depth_F = np.array([typical_depth(geometry.transform(T, xyz_L3)[:, 2]) for T in T_F44])
    buffer = RayBuffer(
        torch.cat(features),
        torch.cat(frame_of_cells),
        torch.cat(rays),
        torch.from_numpy(T_F44.astype(np.float32)),
        torch.from_numpy(focal_F2.astype(np.float32)),
        torch.from_numpy(depth_F.astype(np.float32)),
    )
    return buffer, whitening


def cells_of(view: View, whitening: Whitening, count: int) -> tuple[Tensor, Tensor]:
    """Features and rays of `count` random cells of a view, without those outside the frame."""
    cell_N = view.rng.permutation(view.features_Chw[0].numel())[:count]
    centre_N2 = cell_centres(view.features_Chw.shape[1:])[cell_N]
    xyw_N3 = np.column_stack([centre_N2, np.ones(len(cell_N))]) @ np.linalg.inv(view.warp_33).T
    xy_N2, camera = xyw_N3[:, :2] / xyw_N3[:, 2:], view.camera
    inside = ((xy_N2 >= 0) & (xy_N2 <= [camera.width, camera.height])).all(1)
    ray_N2 = (xy_N2[inside] - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    picked = torch.from_numpy(cell_N[inside]).to(view.features_Chw.device)
    feature_NC = whitening(view.features_Chw.flatten(1).T[picked]).half().cpu()
    return feature_NC, torch.tensor(ray_N2, dtype=torch.float32)


def typical_depth(z_L: np.ndarray) -> float:
    """The median depth of landmarks in front of the camera; 1 if there are none."""
    in_front = z_L[z_L > 0]
    return float(np.median(in_front)) if len(in_front) else 1.0


def reprojection_loss(
    xyz_N3: Tensor,
    ray_N2: Tensor,
    T_camera_world_N44: Tensor,
    focal_N2: Tensor,
    depth_N: Tensor,
    scale_px: float,
    far_px: float,
) -> Tensor:
    """Mean over cells of scale_px * tanh(error / scale_px), in pixels.

    Of points behind the camera or off by more than far_px, the error is instead the distance to the
    point at the typical depth on the cell's ray, relative to that depth, times the scale."""
    R_N33, t_N3 = T_camera_world_N44[:, :3, :3], T_camera_world_N44[:, :3, 3]
    point_N3 = (R_N33 @ xyz_N3[..., None])[..., 0] + t_N3
    z = point_N3[:, 2]
    z_safe = torch.maximum(z, NEAR * depth_N)  # never divides by a depth behind the camera
    error_N2 = (point_N3[:, :2] / z_safe[:, None] - ray_N2) * focal_N2
    error = error_N2.square().sum(1).add(1e-9).sqrt()
    good = (z > NEAR * depth_N) & (error < far_px)
    target_N3 = torch.cat([ray_N2, torch.ones_like(z)[:, None]], 1) * depth_N[:, None]
    distance = (point_N3 - target_N3).abs().sum(1) / depth_N
    robust = scale_px * torch.tanh(error / scale_px)
    return torch.where(good, robust, scale_px * (1 + distance)).mean()
