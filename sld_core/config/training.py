"""Settings of trainings that `sld teach` does not do: a backbone of many scenes, and the models
that sld is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.scene import LOSSES, SceneConfig
from sld_core.config.settings import chosen, ranged


@dataclass(frozen=True)
class BackboneTrainingConfig:
    """Many scenes -> one backbone (training.train_backbone). `scene` says how scenes are made,
    images augmented and heatmaps decoded."""

    scene: SceneConfig = field(default_factory=SceneConfig)
    epochs: int = ranged(20, 1, 10**6)  # an epoch sees every image once
    # a step is one batch of any scene, or one batch of each scene with their gradients added up
    order: str = chosen("shuffled", "rounds")
    batch: int = ranged(4, 1, 10**6)  # images, all of one scene
    patches: int = ranged(8, 1, 1000)  # per image
    positive_patches: float = ranged(0.5, 0.0, 1.0)  # fraction of patches with a visible landmark
    patch_px: int = ranged(96, 32, 4096, multiple=32)  # side of a patch
    dilated: bool = True  # heads begin with a dilated block, as in the paper's final variant
    width: int = ranged(128, 4, 4096, multiple=4)  # channels of that block
    loss: str = chosen(*LOSSES)
    sigma_px: float = ranged(8.0, 1.0, 200.0)  # of the Gaussian targets
    floor: float = ranged(0.1, 0.001, 0.99)  # targets below it are zero
    positive_weight: float = ranged(1.0, 0.0, 1e6)  # of a cell at a landmark, against an empty one
    learning_rate: float = ranged(3e-3, 1e-8, 1.0)  # of the heads
    backbone_learning_rate: float = ranged(1e-4, 0.0, 1.0)
    # fraction of all steps in which only the heads learn: untrained heads would spoil the backbone
    heads_first: float = ranged(0.3, 0.0, 0.99)
    weight_decay: float = ranged(0.01, 0.0, 10.0)
    schedule: str = chosen("cosine", "step")
    warm_up: float = ranged(0.05, 0.0, 0.99)  # fraction of all steps
    halvings: int = ranged(4, 0, 30)  # of schedule "step", spread evenly
    precision: str = chosen("bfloat16", "float16", "float32")  # of multiplications
    check_every: int = ranged(1, 1, 10**6)  # epochs between validations
    check_images: int = ranged(20, 1, 100_000)  # validation images of each scene
    log_every: int = ranged(10, 1, 10**9)  # steps
    # steps between checkpoints; there is one after every epoch as well
    save_every: int = ranged(1000, 1, 10**9)
    loaders: int = ranged(2, 1, 256)  # threads that read images


@dataclass(frozen=True)
class SldStarConfig:
    """SLD*, a baseline: a whole network for every block of landmarks of every scene
    (baselines.sld_star_model, baselines.sld_star)."""

    networks: int = ranged(1, 1, 100)  # each finds a block of consecutive landmarks
    epochs: int = ranged(200, 1, 10**6)  # an epoch sees every image once
    seconds: float = ranged(1e6, 0.1, 1e7)  # of training for each network, even if epochs are left
    images: int = ranged(1, 1, 1000)  # per step
    patches: int = ranged(8, 1, 1000)  # per image; half of them hold a visible landmark
    patch_px: int = ranged(96, 8, 4096, multiple=8)  # side of a patch
    loss: str = chosen("squares", *LOSSES)
    sigma_px: float = ranged(20.0, 1.0, 200.0)  # of the Gaussian targets
    floor: float = ranged(0.1, 0.0, 0.99)  # targets below it are zero
    positive_weight: float = ranged(1.0, 0.0, 1e6)  # of a cell at a landmark, against an empty one
    learning_rate: float = ranged(1e-3, 1e-8, 1.0)
    halvings: int = ranged(4, 0, 30)  # of the learning rate, spread evenly
    bf16: bool = True  # multiply in bfloat16
    watch_steps: int = ranged(500, 1, 10**9)  # between calls of `watch`, as for a curve of recall
    min_score: float = ranged(0.55, 0.0, 1.0)  # of a detection
    reach: int = ranged(4, 1, 20)  # cells around the peak in the centroid of squared scores
    threshold: float = ranged(0.1, 0.0, 1.0)  # fraction of the peak below which cells do not count
    # standard deviation of a detection of score 1; that of others is this divided by the score
    detection_px: float = ranged(2.0, 0.01, 100.0)
    ransac_px: float = ranged(20.0, 0.1, 1000.0)


@dataclass(frozen=True)
class BearingConfig:
    """NBE, a baseline: the bearings of all landmarks from one network (baselines.nbe_model,
    baselines.nbe)."""

    seconds: float = ranged(1e6, 0.1, 1e7)  # of training, even if steps are left
    steps: int = ranged(4000, 1, 10**9)
    batch: int = ranged(64, 1, 10**6)  # images per step
    channels: int = ranged(64, 1, 4096)  # of the features, after whitening
    rows: int = ranged(4, 1, 100)  # of the grid on which features are averaged
    columns: int = ranged(5, 1, 100)
    hidden: int = ranged(512, 1, 16384)
    dropout: float = ranged(0.3, 0.0, 0.95)
    learning_rate: float = ranged(1e-3, 1e-8, 1.0)
    weight_decay: float = ranged(0.05, 0.0, 10.0)
    held_out: float = ranged(0.1, 0.0, 0.5)  # of the frames, to calibrate sigma
    max_sigma_deg: float = ranged(6.0, 0.01, 90.0)  # less certain bearings are not used,
    max_angle_deg: float = ranged(60.0, 1.0, 89.0)  # nor those farther from the optical axis
    ransac_px: float = ranged(40.0, 0.1, 1000.0)  # bearings are good to degrees


@dataclass(frozen=True)
class CoordinateConfig:
    """An ACE-like head, a baseline: the scene coordinate of every cell (baselines.ace_model,
    baselines.ace)."""

    seconds: float = ranged(1e6, 0.1, 1e7)  # of training, even if steps are left
    steps: int = ranged(6000, 1, 10**9)
    batch: int = ranged(4096, 1, 10**6)  # cells per step
    cells: int = ranged(1024, 1, 10**6)  # kept of each image
    hidden: int = ranged(256, 1, 4096)
    blocks: int = ranged(2, 0, 20)  # residual blocks of two layers each
    learning_rate: float = ranged(3e-3, 1e-8, 1.0)
    loose_px: float = ranged(50.0, 0.1, 1000.0)  # scale of the robust loss at the start,
    tight_px: float = ranged(1.0, 0.1, 1000.0)  # and at the end
    far_px: float = ranged(1000.0, 1.0, 1e6)  # larger errors take no part in the reprojection loss
    watch_steps: int = ranged(500, 1, 10**9)  # between calls of `watch`
    cell_px: float = ranged(4.0, 0.01, 100.0)  # standard deviation of each cell in the pose solve
    ransac_px: float = ranged(10.0, 0.1, 1000.0)
