"""The recipe of the bearing network: all landmarks' bearings in every frame, whether it shows them
or not. One page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sld_core import geometry
from sld_core.baselines.augmented_views import View, views
from sld_core.baselines.budget import Budget
from sld_core.baselines.nbe_model import BearingNetwork, Bearings, grid_features
from sld_core.config.scene import BufferConfig
from sld_core.config.training import BearingConfig
from sld_core.models.backbone import Backbone
from sld_core.training import feature_buffer as buffering
from sld_core.training.training_set import TrainingSet, hold_out
from sld_core.types import Progress, SldError


def train(
    training_set: TrainingSet,
    backbone: Backbone,
    config: BearingConfig,
    augmentation: BufferConfig,
    max_side_px: int,
    seed: int,
    device: str,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Bearings, list[tuple[int, float]]]:
    """The model, and the loss curve as (step, mean). config.seconds is that of training, after each
    view's features are there.

    config.held_out of the frames, in chunks, are not learnt from: a network that has few views by
    heart is far too sure of itself, and they tell by how much."""
    whitened = replace(augmentation, channels=config.channels)
    whitening = buffering.fit_whitening(
        training_set.frames,
        np.zeros(len(training_set.frames)),
        backbone,
        whitened,
        max_side_px,
        device,
        seed,
    )
    kept = hold_out(len(training_set.frames), config.held_out)
    grids, targets, learn = [], [], []
    for view in views(training_set, backbone, augmentation, max_side_px, device, seed):
        grids.append(grid_features(view.features_Chw, whitening, config).half().cpu())
        targets.append(true_bearings(view, training_set))
        learn.append(view.frame not in kept)
        progress(
            Progress(
                "filling the buffer of views",
                len(grids) / len(training_set.frames) / (1 + augmentation.augmented_passes),
            )
        )
    grid_VN, bearing_VL3 = (
        torch.stack(grids),
        torch.from_numpy(np.stack(targets).astype(np.float32)),
    )
    learn_V = torch.tensor(learn)
    rows = torch.nonzero(learn_V)[:, 0]

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = BearingNetwork(grid_VN.shape[1], bearing_VL3.shape[1], config).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    budget, curve, running, last = Budget(config.steps, config.seconds), [], None, False
    while not last:
        done = budget.done
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(0.01, math.cos(done * math.pi / 2) ** 2)
        pick = rows[torch.randint(len(rows), (config.batch,), generator=generator)]
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            bearing, log_sigma = network(grid_VN[pick].to(device).to(torch.bfloat16))
        loss = bearing_loss(bearing, log_sigma, bearing_VL3[pick].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        budget.step += 1
        last = budget.done == 1
        if budget.step % 20 == 0 or last:
            curve.append((budget.step, running))
            progress(Progress("training bearings", budget.done, running, budget.seconds_left))
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower learning_rate from "
            f"{config.learning_rate}"
        )
    network.eval()
    return Bearings(
        backbone,
        whitening,
        network,
        config,
        calibrate_sigma(network, *(t[~learn_V].to(device) for t in (grid_VN, bearing_VL3))),
    ), curve


@torch.inference_mode()
def calibrate_sigma(network: BearingNetwork, grid_VN: Tensor, true_VL3: Tensor) -> float:
    """By how much the errors of views exceed what their sigmas promise, at the median; at least 1,
    and 1 where there is no view. Of two normal angles the median error is sqrt(2 log 2) = 1.18
    sigma."""
    if len(grid_VN) == 0:
        return 1.0
    bearing, log_sigma = network(grid_VN.float())
    ratio = (bearing - true_VL3).norm(dim=-1) / log_sigma.exp()
    return max(1.0, float(ratio.median()) / math.sqrt(2 * math.log(2)))


def true_bearings(view: View, training_set: TrainingSet) -> np.ndarray:
    """Unit directions (L, 3) in camera axes of all landmarks in a view, those behind the camera
    too.

    An image warped by H looks like that of a camera which sees K^-1 H K x where the frame's own
    sees x."""
    xyz_L3 = geometry.transform(
        geometry.invert(training_set.frames[view.frame].T_world_camera),
        training_set.landmarks.xyz_L3,
    )
    K = view.camera.K
    bearing_L3 = xyz_L3 @ (np.linalg.inv(K) @ view.warp_33 @ K).T
    return bearing_L3 / np.linalg.norm(bearing_L3, axis=1, keepdims=True)


def bearing_loss(bearing_BL3: Tensor, log_sigma_BL: Tensor, true_BL3: Tensor) -> Tensor:
    """Mean negative log-likelihood of the two angles between predicted and true bearings, normal
    with the predicted sigma."""
    error2 = (bearing_BL3 - true_BL3).square().sum(-1)  # of the chord: radians where it is small
    return (0.5 * error2 * (-2 * log_sigma_BL).exp() + 2 * log_sigma_BL).mean()
