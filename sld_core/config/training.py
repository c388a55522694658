"""Every setting of backbone training (`sld train backbone`), once, with its unit and its
default."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.scene import SceneConfig, ScheduleConfig, TargetConfig
from sld_core.config.settings import chosen, ranged


@dataclass(frozen=True)
class BackboneTrainingConfig:
    """Many scenes -> one backbone (training.train_backbone). `scene` says how scenes are made,
    images augmented and heatmaps decoded."""

    scene: SceneConfig = field(default_factory=SceneConfig)
    epochs: int = ranged(20, 1, 10**6)  # an epoch sees every image once
    # a step is one batch ("shuffled"), or one batch of every scene, their gradients added up
    order: str = chosen("shuffled", "rounds")
    batch: int = ranged(4, 1, 10**6)  # images, all of one scene
    patches: int = ranged(8, 1, 1000)  # per image
    positives: float = ranged(0.5, 0.0, 1.0)  # fraction of patches around a visible landmark
    patch_px: int = ranged(96, 32, 4096, multiple=32)  # side of a patch
    dilated: bool = True  # heads begin with a dilated block, as in the paper's final variant
    width: int = ranged(128, 4, 4096, multiple=4)  # of that block
    target: TargetConfig = field(default_factory=TargetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # of the heads
    backbone_learning_rate: float = ranged(1e-4, 0.0, 1.0)
    # fraction of all steps in which only heads learn: untrained heads would spoil the backbone
    heads_first: float = ranged(0.3, 0.0, 0.99)
    # of multiplications; auto: bfloat16 where the device does it natively, else float32
    precision: str = chosen("auto", "bfloat16", "float16", "float32")
    check_every: int = ranged(1, 1, 10**6)  # epochs between validations
    check_images: int = ranged(20, 1, 100_000)  # per scene and validation
    log_every: int = ranged(10, 1, 10**9)  # steps
    # steps between checkpoints, in addition to one after every epoch
    save_every: int = ranged(1000, 1, 10**9)
    loaders: int = ranged(2, 1, 256)  # threads that read images
