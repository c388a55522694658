"""Every setting of the baselines, once, with its unit and its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sld_core.config.scene import PnpConfig, ScheduleConfig, TargetConfig
from sld_core.config.settings import ranged

# As published: loose RANSAC and robust refinement, and no pose is refused for its uncertainty.
LENIENT_PNP = PnpConfig(
    min_inliers=6,
    min_inlier_ratio=0.0,
    max_position_sigma_m=math.inf,
    max_relative_sigma=math.inf,
    max_rotation_sigma_rad=math.inf,
)


@dataclass(frozen=True)
class SldStarConfig:
    """SLD* (baselines.sld_star): a whole network for every block of landmarks of every scene."""

    networks: int = ranged(1, 1, 100)  # each finds a block of consecutive landmarks
    epochs: int = ranged(200, 1, 10**6)  # an epoch sees every image once
    seconds: float = ranged(1e6, 0.1, 1e7)  # limit of each network's training
    images: int = ranged(1, 1, 1000)  # per step
    patches: int = ranged(8, 1, 1000)  # per image; half of them hold a visible landmark
    patch_px: int = ranged(96, 8, 4096, multiple=8)  # side of a patch
    target: TargetConfig = field(
        default_factory=lambda: TargetConfig(loss="squares", sigma_px=20.0)
    )
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig("halving", learning_rate=1e-3, warm_up=0.0)
    )
    bf16: bool = True  # multiply in bfloat16
    watch_steps: int = ranged(500, 1, 10**9)  # between calls of `watch`
    min_score: float = ranged(0.55, 0.0, 1.0)  # of a detection
    reach: int = ranged(4, 1, 20)  # cells from the peak that the centroid is taken over
    threshold: float = ranged(0.1, 0.0, 1.0)  # cells below this fraction of the peak do not count
    # standard deviation of a detection of score 1; of others, divided by the score
    detection_px: float = ranged(2.0, 0.01, 100.0)
    ransac_px: float = ranged(20.0, 0.1, 1000.0)


@dataclass(frozen=True)
class BearingConfig:
    """NBE (baselines.nbe): one network for the bearings of all landmarks, beside SLD*."""

    seconds: float = ranged(1e6, 0.1, 1e7)  # limit of the training
    steps: int = ranged(4000, 1, 10**9)
    batch: int = ranged(64, 1, 10**6)  # images per step
    channels: int = ranged(64, 1, 4096)  # of the features, after whitening
    rows: int = ranged(4, 1, 100)  # of the grid that features are averaged on
    columns: int = ranged(5, 1, 100)
    hidden: int = ranged(512, 1, 16384)
    dropout: float = ranged(0.3, 0.0, 0.95)
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(learning_rate=1e-3, weight_decay=0.05, warm_up=0.0)
    )
    held_out: float = ranged(0.1, 0.0, 0.5)  # fraction of the frames, to calibrate its sigma
    max_sigma_deg: float = ranged(6.0, 0.01, 90.0)  # less certain bearings are not used
    max_angle_deg: float = ranged(60.0, 1.0, 89.0)  # nor those farther from the optical axis
    ransac_px: float = ranged(40.0, 0.1, 1000.0)  # bearings are accurate to degrees only


@dataclass(frozen=True)
class CoordinateConfig:
    """An ACE-like head (baselines.ace): the scene coordinate of every cell."""

    seconds: float = ranged(1e6, 0.1, 1e7)  # limit of the training
    steps: int = ranged(6000, 1, 10**9)
    batch: int = ranged(4096, 1, 10**6)  # cells per step
    cells: int = ranged(1024, 1, 10**6)  # kept of each image
    hidden: int = ranged(256, 1, 4096)
    blocks: int = ranged(2, 0, 20)  # residual ones, of two layers each
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loose_px: float = ranged(50.0, 0.1, 1000.0)  # scale of the robust loss at the start,
    tight_px: float = ranged(1.0, 0.1, 1000.0)  # and at the end
    far_px: float = ranged(1000.0, 1.0, 1e6)  # beyond this error the depth on the ray guides
    watch_steps: int = ranged(500, 1, 10**9)  # between calls of `watch`
    cell_px: float = ranged(4.0, 0.01, 100.0)  # standard deviation of a cell in the pose solve
    ransac_px: float = ranged(10.0, 0.1, 1000.0)
