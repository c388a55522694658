"""How well a backbone and one scene's training head find landmarks and poses in frames they did not
learn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core import geometry, heatmap, pnp
from sld_core.camera.images import load_upright
from sld_core.config.training import BackboneTrainingConfig
from sld_core.evaluation.metrics import QueryResult, accuracy
from sld_core.heatmap import ScoreMaps
from sld_core.models.backbone import ALIGNMENT_PX
from sld_core.models.heatmap_head import scores
from sld_core.spread import spread
from sld_core.training.training_set import TrainingSet, upright_angles
from sld_core.types import Detections, Frame, Refused

FOUND_PX = 8.0  # a cell
SIGMA_CELL = 0.3  # of a detection, the same for all: heatmaps do not say


@dataclass(frozen=True)
class ValidationResult:
    """`pixel_error`: median distance of detections to the exact projections, working pixels
    (infinite without any). `found`: share of the landmarks in the picture that are detected within
    FOUND_PX; some of them are hidden. `recall`: share of images within 5 cm / 5 deg; NaN where the
    scene is not metric."""

    pixel_error: float
    found: float
    recall: float


@torch.no_grad()
def check(
    network: nn.Module,
    head: nn.Module,
    training_set: TrainingSet,
    config: BackboneTrainingConfig,
    device: str,
) -> ValidationResult:
    """Try up to `config.check_images` of the training_set's validation, spread evenly. Both
    networks must be in evaluation mode."""
    angle_rad_F = upright_angles([*training_set.frames, *training_set.validation])[
        len(training_set.frames) :
    ]
    limits = (
        config.scene.pnp
        if training_set.metric
        else replace(config.scene.pnp, max_position_sigma_m=np.inf)
    )
    errors, shown, results = [], 0, []
    for i in spread(range(len(training_set.validation)), config.check_images):
        frame = training_set.validation[i]
        detections, A = detect(network, head, frame, angle_rad_F[i], config, device)
        xy_L2, _ = geometry.project(
            frame.camera, geometry.invert(frame.T_world_camera), training_set.landmarks.xyz_L3
        )
        true_K2 = (xy_L2 @ A[:, :2].T + A[:, 2])[detections.landmark_K]
        errors.append(
            np.nan_to_num(np.linalg.norm(detections.xy_px_K2 - true_K2, axis=1), nan=np.inf)
        )
        with np.errstate(invalid="ignore"):
            shown += int(
                ((xy_L2 >= 0) & (xy_L2 < [frame.camera.width, frame.camera.height])).all(1).sum()
            )
        pose = pnp.estimate(
            in_full_image(detections, A), training_set.landmarks.xyz_L3, frame.camera, limits
        )
        T, reason = (None, pose.reason) if isinstance(pose, Refused) else (pose.T_world_camera, "")
        results.append(QueryResult(frame.name, frame.T_world_camera, T, reason))
    error = np.concatenate(errors)
    recall = accuracy(results)["recall_5cm_5deg"] if training_set.metric else float("nan")
    return ValidationResult(
        float(np.median(error)) if len(error) else float("inf"),
        float((error < FOUND_PX).sum()) / max(1, shown),
        recall,
    )


def detect(
    network: nn.Module,
    head: nn.Module,
    frame: Frame,
    angle_rad: float,
    config: BackboneTrainingConfig,
    device: str,
) -> tuple[Detections, np.ndarray]:
    """What the two find in one frame, in pixels of its turned working image, and the 2x3 matrix
    from frame to that image."""
    image, A = load_upright(frame, config.scene.image.max_side_px, angle_rad)
    height, width = image.shape[:2]
    image_13HW = (
        torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
        / 255
    )
    image_13HW = F.pad(
        image_13HW, (0, -width % ALIGNMENT_PX, 0, -height % ALIGNMENT_PX), mode="replicate"
    )
    h, w = heatmap.grid_size(height, width)
    how = config.scene.head.heatmap
    score_Lhw = scores(head(network(image_13HW))[..., :h, :w].float(), config.loss)[0]
    maps = ScoreMaps(
        score_Lhw,
        score_Lhw.new_zeros(2, h, w),
        score_Lhw.new_full((h, w), SIGMA_CELL),
        how.reach,
        how.power,
        how.threshold,
    )
    return heatmap.decode(maps, config.scene.decode), A


def in_full_image(found: Detections, A_23: np.ndarray) -> Detections:
    """Detections moved back through the matrix by which the image was scaled and turned."""
    back = np.linalg.inv(A_23[:, :2])
    return replace(
        found,
        xy_px_K2=(found.xy_px_K2 - A_23[:, 2]) @ back.T,
        sigma_px_K=found.sigma_px_K * np.sqrt(abs(np.linalg.det(back))),
    )
