"""How well a backbone and the training head of one scene find landmarks and poses in frames that
they did not learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core import geometry, heatmap, pnp
from sld_core.config.training import BackboneTrainingConfig
from sld_core.evaluation.metrics import QueryResult, accuracy
from sld_core.heatmap import ScoreMaps
from sld_core.models.backbone import ALIGNMENT_PX
from sld_core.models.heatmap_head import scores
from sld_core.spread import spread
from sld_core.training.training_set import TrainingSet
from sld_core.training.validation import ValidationResult, summarize
from sld_core.training.working_images import WorkingImages, upright_angles
from sld_core.types import Detections, Refused

SIGMA_CELL = 0.3  # of every detection: these heatmaps do not tell


@torch.no_grad()
def validate(
    backbone: nn.Module,
    head: nn.Module,
    training_set: TrainingSet,
    config: BackboneTrainingConfig,
    device: str,
) -> ValidationResult:
    """Localize up to `config.check_images` validation frames, spread evenly. Both networks must be
    in evaluation mode. Landmarks hidden behind others count as in view."""
    frames = training_set.validation
    angle_rad_F = upright_angles([*training_set.frames, *frames])[len(training_set.frames) :]
    images = WorkingImages(frames, angle_rad_F, config.scene.image.max_side_px)
    xyz_L3, limits = training_set.landmarks.xyz_L3, config.scene.pnp
    if not training_set.metric:
        limits = replace(limits, max_position_sigma_m=np.inf)
    errors, in_view, results = [], 0, []
    for i in spread(range(len(frames)), config.check_images):
        image, A = images.load(i)
        detections = detect(backbone, head, image, config, device)
        camera, T_true = frames[i].camera, frames[i].T_world_camera
        xy_L2, _ = geometry.project(camera, geometry.invert(T_true), xyz_L3)
        true_K2 = (xy_L2 @ A[:, :2].T + A[:, 2])[detections.landmark_K]
        errors.append(np.linalg.norm(detections.xy_px_K2 - true_K2, axis=1))
        with np.errstate(invalid="ignore"):
            inside = ((xy_L2 >= 0) & (xy_L2 < [camera.width, camera.height])).all(1)
        in_view += int(inside.sum())
        pose = pnp.estimate(in_full_image(detections, A), xyz_L3, camera, limits)
        T, reason = (None, pose.reason) if isinstance(pose, Refused) else (pose.T_world_camera, "")
        results.append(QueryResult(frames[i].name, T_true, T, reason))
    recall = accuracy(results)["recall_5cm_5deg"] if training_set.metric else float("nan")
    return summarize(np.concatenate(errors), in_view, recall)


def detect(
    backbone: nn.Module,
    head: nn.Module,
    image_HW3: np.ndarray,
    config: BackboneTrainingConfig,
    device: str,
) -> Detections:
    """The landmarks found in one image of working size."""
    height, width = image_HW3.shape[:2]
    image_3HW = torch.from_numpy(np.ascontiguousarray(image_HW3)).to(device).permute(2, 0, 1)
    padding = (0, -width % ALIGNMENT_PX, 0, -height % ALIGNMENT_PX)
    image_13HW = F.pad(image_3HW[None].float() / 255, padding, mode="replicate")
    h, w = heatmap.grid_size(height, width)
    logits_1Lhw = head(backbone(image_13HW))[..., :h, :w]
    return heatmap.decode(score_maps(logits_1Lhw, config), config.scene.decode)


def score_maps(logits_1Lhw: torch.Tensor, config: BackboneTrainingConfig) -> ScoreMaps:
    """Score maps of one image from the output of a training head."""
    score_Lhw = scores(logits_1Lhw.float(), config.target.loss)[0]
    _, h, w = score_Lhw.shape
    decoding = config.scene.head.heatmap
    return ScoreMaps(
        score_Lhw,
        score_Lhw.new_zeros(2, h, w),
        score_Lhw.new_full((h, w), SIGMA_CELL),
        decoding.reach,
        decoding.power,
        decoding.threshold,
    )


def in_full_image(found: Detections, A_23: np.ndarray) -> Detections:
    """Detections in pixels of the frame, given the matrix from the frame to the working image."""
    back = np.linalg.inv(A_23[:, :2])
    return replace(
        found,
        xy_px_K2=(found.xy_px_K2 - A_23[:, 2]) @ back.T,
        sigma_px_K=found.sigma_px_K * np.sqrt(abs(np.linalg.det(back))),
    )
