"""Score maps and pixels: the only place that knows the stride. Cell (row i, column j) covers pixels
[8j, 8j+8) x [8i, 8i+8)."""

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
    """Pixels (corner origin) -> cells, where the centre of cell (i, j) is (x, y) = (j, i)."""
    return xy_px / STRIDE - 0.5


def cell_to_pixel(xy_cell):
    """Inverse of pixel_to_cell."""
    return (xy_cell + 0.5) * STRIDE


@dataclass(frozen=True)
class ScoreMaps:
    """The output of any head for one image: `score_Lhw` in 0..1 for each landmark and cell;
    `offset_2hw`, (x, y) in cells from the cell's centre to the landmark it shows; `sigma_hw`, the
    standard deviation of that offset per axis, in cells.

    The position of a landmark is the mean of the estimates of all cells up to `reach` from its peak
    whose score is at least `threshold` of the peak's, weighted by their score to the `power`."""

    score_Lhw: torch.Tensor
    offset_2hw: torch.Tensor
    sigma_hw: torch.Tensor
    reach: int = 1
    power: float = 1.0
    threshold: float = 0.0


def decode(maps: ScoreMaps, config: DecodeConfig) -> Detections:
    """One detection per landmark whose best cell scores at least `min_score`; best score first."""
    score_LN = maps.score_Lhw.flatten(1)
    peak_L = score_LN.amax(1)  # ten times faster than max, which finds the index too
    keep = torch.nonzero(peak_L >= config.min_score)[:, 0]
    return _refine(maps, keep, score_LN[keep].contiguous().argmax(1), peak_L[keep])


def decode_near(maps: ScoreMaps, xy_px_L2: np.ndarray, config: DecodeConfig) -> Detections:
    """Like `decode`, but for each landmark only within `guided_radius_cell` of `xy_px_L2` (NaN:
    nowhere), and with scores from `guided_min_score` on."""
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
    """Sub-cell positions, as described in ScoreMaps; best score first."""
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
    offset_x, offset_y = maps.offset_2hw.flatten(1)[:, cell]
    xy_K2 = torch.stack([((x + offset_x) * weight).sum(1), ((y + offset_y) * weight).sum(1)], 1)
    sigma_K = (maps.sigma_hw.flatten()[cell] * weight).sum(1)
    order = torch.argsort(peak_K, descending=True, stable=True)
    landmark_K, xy_K2, peak_K, sigma_K = (
        values[order].cpu().numpy() for values in (landmark_K, xy_K2, peak_K, sigma_K)
    )
    return Detections(
        landmark_K,
        cell_to_pixel(xy_K2.astype(np.float64)),
        peak_K.astype(np.float64),
        sigma_K.astype(np.float64) * STRIDE,
    )
