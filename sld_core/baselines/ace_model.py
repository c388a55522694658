"""An ACE-like head (Brachmann et al., CVPR 2023) on our features: every cell's point in the scene,
and the pose from all of them. It stores no landmarks; a baseline for what a head on frozen features
can do in equal time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core.config.training import CoordinateConfig
from sld_core.heatmap import cell_to_pixel
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.types import Camera, Detections


class CoordinateHead(nn.Module):
    """Whitened features (N, C) -> points (N, 3) in the training_set's coordinates, by a 1x1 network
    with residual blocks.

    The last layer is in units of `spread` about `centre_3`: where the scene is, and how large, need
    not be learnt."""

    def __init__(
        self, channels: int, config: CoordinateConfig, centre_3: np.ndarray, spread: float
    ):
        super().__init__()
        self.first = nn.Linear(channels, config.hidden)
        width = config.hidden
        block = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(block() for _ in range(config.blocks))
        self.last = nn.Linear(width, 3)
        self.register_buffer("centre", torch.tensor(centre_3, dtype=torch.float32))
        self.spread = spread

    def forward(self, cells_NC: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(cells_NC))
        for block in self.blocks:
            x = F.relu(x + block(x))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 knows a room to a centimetre
            return self.last(x.float()) * self.spread + self.centre


@dataclass(frozen=True)
class Coordinates:
    """A trained head with its backbone (a peers.Baseline)."""

    backbone: Backbone
    whitening: Whitening
    head: CoordinateHead
    config: CoordinateConfig

    @property
    def ransac_px(self) -> float:
        return self.config.ransac_px

    @torch.inference_mode()
    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Every cell as a detection of a point of its own, in random order: RANSAC takes the first
        ones first."""
        device = self.head.centre.device
        features_Chw = self.backbone.features(image_HW3, str(device))
        with torch.autocast(device.type, torch.bfloat16):
            xyz_N3 = self.head(self.whitening(features_Chw.flatten(1).T))
        order = np.random.default_rng(0).permutation(len(xyz_N3))
        xy_N2 = cell_centres(features_Chw.shape[1:])[order]
        n = len(order)
        return Detections(
            np.arange(n), xy_N2, np.ones(n), np.full(n, self.config.cell_px)
        ), xyz_N3.cpu().numpy().astype(float)[order]


def cell_centres(shape_hw: tuple[int, int]) -> np.ndarray:
    """Pixels (h * w, 2), corner origin, row by row."""
    h, w = shape_hw
    y, x = np.mgrid[:h, :w]
    return cell_to_pixel(np.stack([x.ravel(), y.ravel()], 1).astype(float))
