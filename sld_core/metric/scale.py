"""How large a reconstruction is: the noun `Scale`, and scale from the frames' depth images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sld_core.camera import images
from sld_core.config.mapping import MetricConfig
from sld_core.spread import spread
from sld_core.types import Camera, Progress, Reconstruction


@dataclass(frozen=True)
class Scale:
    """What one source says of the scale: metres per unit of the reconstruction, or None and the
    `reason`; `absent` where the input has no such source."""

    source: str
    metres_per_unit: float | None
    reason: str = ""
    residual: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    absent: bool = False


def depth_scale(
    reconstruction: Reconstruction,
    config: MetricConfig,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Scale:
    """From the frames' depth images: the median ratio of the measured depth to that of the points,
    at their observations.

    Samples beside a depth discontinuity are left out: there the depth image often shows the other
    side."""
    with_depth = [i for i, f in enumerate(reconstruction.frames) if f.depth_path]
    if not with_depth:
        return Scale("depth", None, "no frame has a depth image", absent=True)
    chosen = spread(with_depth, config.max_depth_frames)
    logs = []
    for k, i in enumerate(chosen):
        progress(Progress("scale from depth images", k / len(chosen)))
        logs.append(_log_ratios(reconstruction, i, config))
    samples = np.concatenate(logs)
    if len(samples) < config.min_depth_samples:
        return Scale(
            "depth",
            None,
            f"only {len(samples)} points lie on measured depth in {len(chosen)} depth images; "
            f"expected at least {config.min_depth_samples} (metric.min_depth_samples)",
        )
    scale, mad = log_median(samples)
    residual = {
        "depth_mad_percent": mad,
        "depth_samples": float(len(samples)),
        "depth_frames": float(len(chosen)),
    }
    if mad > 100 * config.max_depth_spread:
        reason = (
            "depth images and points do not fit together: half of the ratios are more than "
            f"{mad:.0f} % off their median (expected at most {100 * config.max_depth_spread:.0f} "
            "%); are the depth images aligned with the images, and in millimetres?"
        )
        return Scale("depth", None, reason, residual)
    notes = []
    off = spread_over_images(logs)
    if off is not None:
        uneven = residual["depth_frame_spread_percent"] = 100 * float(off[1])
        if uneven > 100 * config.max_depth_frame_spread:
            notes.append(
                f"one image in ten disagrees with the map's scale by {uneven:.0f} % or more, by "
                "its depth: parts of the map that overlap little are of different size; add images "
                "on the way between them"
            )
    return Scale("depth", scale, residual=residual, notes=notes)


def spread_over_images(logs: Sequence[np.ndarray]) -> np.ndarray | None:
    """By how much, relative, the scale of an image differs from that of all: (median, what one
    image in ten exceeds). `logs` are log(measured depth / depth of the point) by image; None where
    no image has ten."""
    medians = np.array([np.median(log) for log in logs if len(log) >= 10])
    if not len(medians):
        return None
    return np.percentile(np.abs(medians - np.median(np.concatenate(logs))), [50, 90])


def _log_ratios(reconstruction: Reconstruction, frame: int, config: MetricConfig) -> np.ndarray:
    """log(measured depth / depth of the point) of the observations of one frame that hit a smooth
    patch of its depth image."""
    of_frame = reconstruction.obs_frame_M == frame
    depth = images.read_depth(reconstruction.frames[frame].depth_path)
    z = depths_in(reconstruction, frame, reconstruction.obs_point_M[of_frame])
    measured = sample_smooth(
        depth,
        reconstruction.frames[frame].camera,
        reconstruction.obs_xy_M2[of_frame],
        config.depth_jump,
    )
    good = (measured > 0) & (z > 0)
    return np.log(measured[good] / z[good])


def sample_smooth(
    depth_hw: np.ndarray, camera: Camera, xy_N2: np.ndarray, jump: float
) -> np.ndarray:
    """The depth (N,) nearest to pixels of the camera's image (corner origin), of an aligned depth
    image of any resolution; 0 where there is none, or where the 3x3 around it has a gap or spreads
    by more than `jump` times its depth."""
    h, w = depth_hw.shape
    # corner-origin pixels scale without any shift; pixel j covers j to j + 1
    column = np.floor(xy_N2[:, 0] * w / camera.width).astype(int)
    row = np.floor(xy_N2[:, 1] * h / camera.height).astype(int)
    inside = (column >= 1) & (column < w - 1) & (row >= 1) & (row < h - 1)
    column, row = np.clip(column, 1, max(w - 2, 1)), np.clip(row, 1, max(h - 2, 1))
    if min(h, w) < 3:
        return np.zeros(len(xy_N2))
    steps = np.array([-1, 0, 1])
    patch = depth_hw[
        row[:, None, None] + steps[:, None], column[:, None, None] + steps[None, :]
    ].reshape(len(xy_N2), 9)
    centre = patch[:, 4].astype(float)
    smooth = (patch.min(1) > 0) & (patch.max(1) - patch.min(1) <= jump * centre)
    return np.where(inside & smooth, centre, 0.0)


def depths_in(reconstruction: Reconstruction, frame: int, point_K: np.ndarray) -> np.ndarray:
    """Depth (K,) of points along the optical axis of a frame, in units of the reconstruction."""
    T = reconstruction.frames[frame].T_world_camera
    return (reconstruction.points_N3[point_K] - T[:3, 3]) @ T[:3, 2]


def median_depth(reconstruction: Reconstruction) -> float:
    """Median over all observations of the depth of the point seen, in units of the
    reconstruction."""
    r = reconstruction
    T = np.stack([f.T_world_camera for f in r.frames])[r.obs_frame_M]
    ray_M3 = r.points_N3[r.obs_point_M] - T[:, :3, 3]
    return float(np.median((ray_M3 * T[:, :3, 2]).sum(1)))


def log_median(log_N: np.ndarray) -> tuple[float, float]:
    """exp of the median, and the median absolute deviation from it in percent."""
    middle = np.median(log_N)
    return float(np.exp(middle)), 100 * float(np.median(np.abs(log_N - middle)))
