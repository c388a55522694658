"""Score maps and pixels: the only owner of the stride. Cell (row i, column j) covers pixels [8j,
8j+8) x [8i, 8i+8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sld_core.config.scene import DecodeConfig
from sld_core.types import Detections

STRIDE = 8


def grid_size(height_px: int, width_px: int) -> tuple[int, int]:
    """Rows and columns of cells that cover an image."""
    return -(-height_px // STRIDE), -(-width_px // STRIDE)


def pixel_to_cell(xy_px):
    """Pixels (corner origin) -> cell units, where the centre of cell (i, j) is (x, y) = (j, i)."""
    return xy_px / STRIDE - 0.5


def cell_to_pixel(xy_cell):
    """Inverse of pixel_to_cell."""
    return (xy_cell + 0.5) * STRIDE


@dataclass(frozen=True)
class ScoreMaps:
    """What any head says of one image: `score_Lhw` in 0..1 for each landmark and cell; `offset_2hw`
    (x, y) in cells from the cell's centre to the landmark it shows; `sigma_hw` the standard
    deviation of that offset per axis, in cells.

    Cells up to `reach` from a peak, those of at least `threshold` of its score, say together where
    the landmark is: their estimates are averaged, each weighted by its score to the `power`."""

    score_Lhw: torch.Tensor
    offset_2hw: torch.Tensor
    sigma_hw: torch.Tensor
    reach: int = 1
    power: float = 1.0
    threshold: float = 0.0


def decode(maps: ScoreMaps, config: DecodeConfig) -> Detections:
    """One detection per landmark whose best cell scores at least config.min_score; best score
    first."""
    score_LN = maps.score_Lhw.flatten(1)
    peak_L = score_LN.amax(1)  # ten times faster than max, which also looks for the place
    keep = torch.nonzero(peak_L >= config.min_score)[:, 0]
    return _refine(maps, keep, score_LN[keep].contiguous().argmax(1), peak_L[keep])


def decode_near(maps: ScoreMaps, xy_px_L2: np.ndarray, config: DecodeConfig) -> Detections:
    """As `decode`, but looks for each landmark only within guided_radius_cell of `xy_px_L2` (NaN:
    nowhere), and takes scores from guided_min_score on."""
    h, w = maps.score_Lhw.shape[1:]
    xy_cell = pixel_to_cell(np.asarray(xy_px_L2, np.float32))
    inside = np.isfinite(xy_cell).all(1) & (xy_cell > -1).all(1) & (xy_cell < [w, h]).all(1)
    landmark = torch.from_numpy(np.flatnonzero(inside)).to(maps.score_Lhw.device)
    if len(landmark) == 0:
        return _refine(maps, landmark, landmark, maps.score_Lhw.new_zeros(0))
    reach = int(np.ceil(config.guided_radius_cell))
    step = torch.arange(-reach, reach + 1, device=landmark.device)
    dy, dx = (g.flatten() for g in torch.meshgrid(step, step, indexing="ij"))
    centre = torch.from_numpy(np.round(xy_cell[inside])).to(landmark)
    x, y = centre[:, :1] + dx, centre[:, 1:] + dy
    exact = torch.from_numpy(xy_cell[inside]).to(landmark.device)
    near = (x - exact[:, :1]) ** 2 + (y - exact[:, 1:]) ** 2 <= config.guided_radius_cell**2
    valid = near & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).long()
    score = maps.score_Lhw.flatten(1)[landmark[:, None], cell] * valid
    peak, k = score.max(1)
    keep = peak >= config.guided_min_score
    return _refine(maps, landmark[keep], cell.gather(1, k[:, None])[keep, 0], peak[keep])


def _refine(maps: ScoreMaps, landmark_K, cell_K, peak_K) -> Detections:
    """Sub-cell positions: the mean over the window of each cell's own estimate, weighted by its
    score as the head wants it."""
    h, w = maps.score_Lhw.shape[1:]
    step = torch.arange(-maps.reach, maps.reach + 1, device=cell_K.device)
    dy, dx = (g.flatten() for g in torch.meshgrid(step, step, indexing="ij"))
    y, x = (cell_K // w)[:, None] + dy, (cell_K % w)[:, None] + dx
    valid = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    weight = maps.score_Lhw.flatten(1)[landmark_K[:, None], cell] * valid
    if (maps.power, maps.threshold) != (1.0, 0.0):
        weight = torch.where(weight >= maps.threshold * peak_K[:, None], weight**maps.power, 0.0)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    offset_2K9 = maps.offset_2hw.flatten(1)[:, cell]
    xy = torch.stack(
        [((x + offset_2K9[0]) * weight).sum(1), ((y + offset_2K9[1]) * weight).sum(1)], 1
    )
    sigma = (maps.sigma_hw.flatten()[cell] * weight).sum(1)
    order = torch.argsort(peak_K, descending=True, stable=True)
    as_numpy = lambda t: t[order].cpu().numpy()
    return Detections(
        as_numpy(landmark_K),
        cell_to_pixel(as_numpy(xy).astype(np.float64)),
        as_numpy(peak_K).astype(np.float64),
        as_numpy(sigma).astype(np.float64) * STRIDE,
    )
