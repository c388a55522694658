"""The recipe of the ACE-like head: cells of frozen features with their poses -> scene coordinates.
One page, top to bottom.

As ACE: no depth, no points, only the reprojection error of each cell, under a robust loss that
tightens; a point behind or far off the camera is drawn to a plausible depth on its ray first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sld_core import geometry
from sld_core.baselines.ace_model import CoordinateHead, Coordinates, cell_centres
from sld_core.baselines.augmented_views import View, views
from sld_core.baselines.budget import Budget
from sld_core.config.scene import BufferConfig
from sld_core.config.training import CoordinateConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.training import feature_buffer as buffering
from sld_core.training.training_set import TrainingSet
from sld_core.types import Progress, SldError

WARM_UP = 0.05  # of the training
NEAR = 0.02  # of the scene's usual depth: nearer, a reprojection says nothing

Watch = Callable[
    [int, float, Coordinates], None
]  # step, seconds of training so far, the model as it is


@dataclass(frozen=True)
class RayBuffer:
    """Cells of all views: whitened `feature_NC` (float16), `frame_N`, and `ray_N2`, the direction
    (x, y, 1) in the frame's camera in which the centre of the cell looks. `T_camera_world_F44`,
    `focal_F2` pixels at working size; `depth_F` the usual distance of what each frame shows, in the
    training_set's unit."""

    feature_NC: Tensor
    frame_N: Tensor
    ray_N2: Tensor
    T_camera_world_F44: Tensor
    focal_F2: Tensor
    depth_F: Tensor

    def __len__(self) -> int:
        return len(self.frame_N)


def fill(
    training_set: TrainingSet,
    backbone: Backbone,
    config: CoordinateConfig,
    augmentation: BufferConfig,
    max_side_px: int,
    seed: int,
    device: str,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[RayBuffer, Whitening]:
    """config.cells random cells of every image, plain and augmented, as far as they lie in the
    frame."""
    frames = training_set.frames
    whitening = buffering.fit_whitening(
        frames, np.zeros(len(frames)), backbone, augmentation, max_side_px, device, seed
    )
    parts, focal_F2 = [], np.zeros((len(frames), 2))
    for view in views(training_set, backbone, augmentation, max_side_px, device, seed):
        parts.append(cells_of(view, whitening, config.cells))
        focal_F2[view.frame] = view.camera.fx, view.camera.fy
        progress(
            Progress(
                "filling the buffer of rays",
                len(parts) / len(frames) / (1 + augmentation.augmented_passes),
            )
        )
    feature, frame, ray = (torch.cat(part) for part in zip(*parts))
    T_F44 = np.stack([geometry.invert(f.T_world_camera) for f in frames])
    depth_F = np.array(
        [usual_depth(geometry.transform(T, training_set.landmarks.xyz_L3)[:, 2]) for T in T_F44]
    )
    return RayBuffer(
        feature,
        frame,
        ray,
        *(torch.from_numpy(x.astype(np.float32)) for x in (T_F44, focal_F2, depth_F)),
    ), whitening


def cells_of(view: View, whitening: Whitening, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, frame and rays of `count` random cells of a view, less those that look past the
    frame."""
    cell_N = view.rng.permutation(view.features_Chw[0].numel())[:count]
    seen = (
        np.column_stack([cell_centres(view.features_Chw.shape[1:])[cell_N], np.ones(len(cell_N))])
        @ np.linalg.inv(view.warp_33).T
    )
    xy_N2, camera = seen[:, :2] / seen[:, 2:], view.camera
    inside = ((xy_N2 >= 0) & (xy_N2 <= [camera.width, camera.height])).all(1)
    ray_N2 = (xy_N2[inside] - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    picked = torch.from_numpy(cell_N[inside]).to(view.features_Chw.device)
    feature_NC = whitening(view.features_Chw.flatten(1).T[picked]).half().cpu()
    return (
        feature_NC,
        torch.full((len(picked),), view.frame),
        torch.tensor(ray_N2, dtype=torch.float32),
    )


def usual_depth(z_L: np.ndarray) -> float:
    """The median depth of landmarks in front of the camera; 1 if there is none."""
    return float(np.median(z_L[z_L > 0])) if (z_L > 0).any() else 1.0


def train(
    training_set: TrainingSet,
    backbone: Backbone,
    config: CoordinateConfig,
    augmentation: BufferConfig,
    max_side_px: int,
    seed: int,
    device: str,
    progress: Callable[[Progress], None] = lambda _: None,
    watch: Watch = lambda *_: None,
) -> tuple[Coordinates, list[tuple[int, float]]]:
    """The model, and the loss curve as (step, mean). config.seconds is that of training, without
    filling the buffer."""
    buffer, whitening = fill(
        training_set, backbone, config, augmentation, max_side_px, seed, device, progress
    )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    xyz_L3 = training_set.landmarks.xyz_L3
    head = CoordinateHead(
        buffer.feature_NC.shape[1], config, np.median(xyz_L3, 0), float(xyz_L3.std())
    ).to(device)
    model = Coordinates(backbone, whitening, head, config)
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate)
    budget, curve, running, last = Budget(config.steps, config.seconds), [], None, False
    while not last:
        done = budget.done
        for group in optimizer.param_groups:
            group["lr"] = (
                config.learning_rate
                * max(0.01, math.cos(done * math.pi / 2) ** 2)
                * min(1.0, (done + 1e-3) / WARM_UP)
            )
        pick = torch.randint(len(buffer), (config.batch,), generator=generator)
        frame = buffer.frame_N[pick]
        cells, of_frames = (
            (buffer.feature_NC, buffer.ray_N2),
            (buffer.T_camera_world_F44, buffer.focal_F2, buffer.depth_F),
        )
        feature, ray, T, focal, depth = (
            t.to(device) for t in (*(t[pick] for t in cells), *(t[frame] for t in of_frames))
        )
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            xyz_N3 = head(feature.to(torch.bfloat16))
        scale_px = config.tight_px + (config.loose_px - config.tight_px) * math.sqrt(
            1 - done**2
        )  # as ACE
        loss = reprojection_loss(xyz_N3, ray, T, focal, depth, scale_px, config.far_px)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        budget.step += 1
        last = budget.done == 1
        if budget.step % 20 == 0 or last:
            curve.append((budget.step, running))
            progress(
                Progress("training scene coordinates", budget.done, running, budget.seconds_left)
            )
        if budget.step % config.watch_steps == 0 or last:
            with budget.pause():
                watch(budget.step, budget.seconds, model)
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower learning_rate from "
            f"{config.learning_rate}"
        )
    return model, curve


def reprojection_loss(
    xyz_N3: Tensor,
    ray_N2: Tensor,
    T_camera_world_N44: Tensor,
    focal_N2: Tensor,
    depth_N: Tensor,
    scale_px: float,
    far_px: float,
) -> Tensor:
    """Mean over cells of scale_px * tanh(error / scale_px), in pixels; of those behind the camera
    or off by more than far_px, the distance to the point at the usual depth on the cell's ray, as
    part of that depth, times the scale."""
    point_N3 = (T_camera_world_N44[:, :3, :3] @ xyz_N3[..., None])[..., 0] + T_camera_world_N44[
        :, :3, 3
    ]
    z = point_N3[:, 2]
    z_safe = torch.maximum(z, NEAR * depth_N)  # never divides by what is behind
    error = (
        ((point_N3[:, :2] / z_safe[:, None] - ray_N2) * focal_N2).square().sum(1).add(1e-9).sqrt()
    )
    good = (z > NEAR * depth_N) & (error < far_px)
    target_N3 = torch.cat([ray_N2, torch.ones_like(z)[:, None]], 1) * depth_N[:, None]
    astray = (point_N3 - target_N3).abs().sum(1) / depth_N
    return torch.where(
        good, scale_px * torch.tanh(error / scale_px), scale_px * (1 + astray)
    ).mean()
