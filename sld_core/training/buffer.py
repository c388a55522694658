"""The feature buffer: the frozen backbone runs once over all images, plain and augmented; training then sees only cells.

Cells within positive_radius_cell of a visible landmark are its positives; cells farther than ignore_radius_cell from
every landmark, seen or unknown, may be background."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
import torch

from sld_core import heatmap
from sld_core.config import BufferConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.training import samples
from sld_core.types import Frame, Labels, Progress, Visibility

WHITENING_FRAMES, WHITENING_CELLS = 60, 600


@dataclass(frozen=True)
class FeatureBuffer:
    """Training cells of all passes: whitened `feature_NC` (float16), `landmark_N` (L for background), `offset_N2`
    (cells, from the cell's centre to the landmark; 0 for background) and `plain_N`, true for cells of unaugmented images."""

    feature_NC: torch.Tensor
    landmark_N: torch.Tensor
    offset_N2: torch.Tensor
    plain_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.landmark_N)


def fill(frames: Sequence[Frame], labels: Labels, angle_rad_F: np.ndarray, backbone: Backbone, config: BufferConfig,
         max_side_px: int, device: str, rng: np.random.Generator, passes: int,
         progress: Callable[[Progress], None]) -> tuple[FeatureBuffer, Whitening]:
    """One plain pass and `passes` augmented ones over `frames`, each turned upright by its angle; row i of `labels`
    belongs to frame i."""
    whitening = fit_whitening(frames, angle_rad_F, backbone, config, max_side_px, device, rng)
    chunks, total = [], len(frames) * (1 + passes)
    for step in range(total):
        i = step % len(frames)
        image, A = samples.load(frames[i], max_side_px, angle_rad_F[i])
        xy_L2 = labels.xy_FL2[i] @ A[:, :2].T + A[:, 2]
        if step >= len(frames):
            image, xy_L2 = samples.augment(image, xy_L2, config, rng)
        cell, landmark, offset = pick_cells(image.shape[:2], xy_L2, labels.visibility_FL[i], config, rng)
        features_NC = backbone.features(image, device).flatten(1).T[torch.from_numpy(cell).to(device)]
        chunks.append((whitening(features_NC).half().cpu(), landmark, offset, np.full(len(cell), step < len(frames))))
        progress(Progress("filling the feature buffer", (step + 1) / total))
    feature, landmark, offset, plain = zip(*chunks)
    join = lambda parts: torch.from_numpy(np.concatenate(parts))
    return FeatureBuffer(torch.cat(feature), join(landmark), join(offset), join(plain)), whitening


def fit_whitening(frames: Sequence[Frame], angle_rad_F: np.ndarray, backbone: Backbone, config: BufferConfig,
                  max_side_px: int, device: str, rng: np.random.Generator) -> Whitening:
    """Whitening of random cells of frames spread over the whole drive."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, WHITENING_FRAMES).round().astype(int))
    cells = []
    for i in chosen:
        features_NC = backbone.features(samples.load(frames[i], max_side_px, angle_rad_F[i])[0], device).flatten(1).T
        cells.append(features_NC[torch.from_numpy(rng.integers(0, len(features_NC), WHITENING_CELLS)).to(device)])
    return Whitening.fit(torch.cat(cells), min(config.channels, backbone.channels)).to(device)


def pick_cells(shape_HW: tuple[int, int], xy_L2: np.ndarray, visibility_L: np.ndarray, config: BufferConfig,
               rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat cell index (N,), landmark (N,) with L for background, and offset (N, 2) in cells, of one image."""
    h, w = heatmap.grid_size(*shape_HW)
    background = len(xy_L2)
    with np.errstate(invalid="ignore"):
        inside = ((xy_L2 >= 0) & (xy_L2 < [shape_HW[1], shape_HW[0]])).all(1) & (visibility_L != Visibility.HIDDEN)
    landmark = np.flatnonzero(inside)
    xy_cell = heatmap.pixel_to_cell(xy_L2[landmark])
    x, y, distance2 = _window(xy_cell, config.ignore_radius_cell)
    valid = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = y * w + x
    free = np.ones(h * w, bool)
    free[cell[valid & (distance2 <= config.ignore_radius_cell**2)]] = False
    positive = valid & (distance2 <= config.positive_radius_cell**2) & (visibility_L[landmark] == Visibility.VISIBLE)[:, None]
    row, column = np.nonzero(positive)
    # where two landmarks claim a cell, the nearer one has it
    order = np.argsort(distance2[row, column], kind="stable")
    row, column = row[order], column[order]
    _, first = np.unique(cell[row, column], return_index=True)
    row, column = row[first], column[first]
    offset = xy_cell[row] - np.stack([x[row, column], y[row, column]], 1)
    empty = np.flatnonzero(free)
    empty = rng.choice(empty, min(config.background_cells, len(empty)), replace=False) if len(empty) else empty
    return (np.concatenate([cell[row, column], empty]).astype(np.int64),
            np.concatenate([landmark[row], np.full(len(empty), background)]).astype(np.int64),
            np.concatenate([offset, np.zeros((len(empty), 2))]).astype(np.float32))


def _window(xy_cell_K2: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells around each position: columns x (K, W), rows y (K, W) and squared distances (K, W)."""
    reach = int(np.ceil(radius))
    dy, dx = (g.ravel() for g in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    centre = np.round(xy_cell_K2).astype(int)
    x, y = centre[:, :1] + dx, centre[:, 1:] + dy
    return x, y, (x - xy_cell_K2[:, :1]) ** 2 + (y - xy_cell_K2[:, 1:]) ** 2
