"""Every tunable of sld, once, with its unit and its default."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from sld_core.types import SldError


def ranged(default, low, high, multiple: int = 1):
    """The field of a number from low to high; of a whole number that must be a multiple."""
    return field(default=default, metadata={"range": (low, high), "multiple": multiple})


def chosen(default: str, *others: str):
    """The field of a word that is one of these."""
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True)
class ImageConfig:
    max_side_px: int = 640  # larger images are scaled down to this before anything else


@dataclass(frozen=True)
class BagConfig:
    """Which topics and frames of a bag to use, and which of its images to keep (mapping.bag)."""

    image_topic: str = ""  # empty: the only image topic of the bag
    camera_info_topic: str = ""  # empty: the one beside the image topic
    depth_topic: str = ""  # depth images registered to the camera; empty: the only one of the image's shape, if any
    camera_frame: str = ""  # optical frame; empty: the frame_id of the images
    world_frame: str = ""  # empty: the highest frame (map before odom) whose pose is known for most images
    rectified: bool = False  # the images are rectified already (image_rect): use P and no distortion
    min_translation_m: float = ranged(0.05, 0.0, 1e9)  # keep an image when it moved this far from the last one kept,
    min_rotation_deg: float = ranged(5.0, 0.0, 1e9)  # or turned this much,
    max_interval_s: float = ranged(2.0, 0.0, 1e9)  # or this much time passed; any of the three 0: keep all
    max_frames: int = 300  # the three thresholds grow together until no more are kept; all of them are thinned evenly
    jpeg_quality: int = 95


@dataclass(frozen=True)
class TrackConfig:
    """SIFT tracks triangulated with known poses (mapping.tracks)."""

    max_features: int = 2500  # per image
    neighbours: int = 20  # images each image is matched with
    max_view_angle_deg: float = 60.0  # between the optical axes of a matched pair
    refine_poses: bool = True  # bundle adjustment of the given poses, where it helps, then back into their frame
    good_reprojection_px: float = 1.0  # mean error below which given poses are left alone
    refine_gain: float = 0.85  # refined poses are taken if the error falls, or the observations grow, by this factor
    prior_sigma_m: float = 0.05  # of each given position, when poses are refined
    loose_reprojection_px: float = 8.0  # first triangulation, with the poses as given
    reprojection_px: float = 4.0  # after refinement
    min_triangulation_deg: float = 1.5


@dataclass(frozen=True)
class LandmarkConfig:
    """Which track points become landmarks (mapping.landmarks)."""

    count: int = 1000
    min_views: int = 6
    max_error_px: float = 2.0
    min_span_deg: float = 3.0  # angle between the extreme viewing directions
    first_spacing: float = ranged(0.1, 0.0, 1.0)  # of the diameter of the scene's points, between neighbours in the first pass; 0: any
    spacing_shrink: float = 0.7  # per pass
    matchability_weight: float = ranged(0.0, 0.0, 1e6)  # beside the saliency, which is 1 to 4; 0 takes no time
    matchability_frames: int = ranged(40, 2, 10_000)  # images in which points are compared (mapping.matchability)
    matchability_views: int = ranged(3, 2, 100)  # wanted of each point
    matchability_rivals: int = ranged(1500, 10, 1_000_000)  # cells of an image, and other points, that each is compared with
    matchability_temperature: float = ranged(0.05, 1e-3, 10.0)  # of the softmax over cosines


@dataclass(frozen=True)
class LabelConfig:
    """Visibility of landmarks in frames (mapping.labels)."""

    use_depth: bool = True  # of the frames that have a depth image
    depth_shows: bool = True  # a depth image that agrees makes VISIBLE; else only tracks do
    depth_tolerance: float = ranged(0.05, 0.0, 0.5)  # relative: nearer than this to the measured depth is VISIBLE
    occluded_ratio: float = ranged(0.7, 0.0, 1.0)  # measured depth below this part of the landmark's depth: HIDDEN
    depth_reach_px: int = ranged(1, 0, 10)  # depth pixels to either side that count as the landmark's: edges are not exact
    use_normals: bool = True  # of landmarks, where depth images tell them
    normal_max_deg: float = ranged(80.0, 0.0, 180.0)  # seen more slanted than this, or from behind: HIDDEN


@dataclass(frozen=True)
class BufferConfig:
    """The buffer of training cells (training.buffer)."""

    augmented_passes: int = 2
    background_cells: int = 500  # per image
    positive_radius_cell: float = 1.2
    ignore_radius_cell: float = 2.5
    max_rotation_deg: float = 15.0
    max_tilt_deg: float = 0.0  # as if the camera swung around what it sees
    min_scale: float = 0.7
    max_scale: float = 1.4
    contrast: float = 0.2
    brightness: float = 25.0  # of 255
    channel_shift: float = 8.0  # of 255
    blur_probability: float = 0.3
    noise: float = 3.0  # of 255
    channels: int = 128  # after the whitened projection
    processes: int = ranged(1, 1, 256)  # that fill it, beside those of torchrun


@dataclass(frozen=True)
class HeatmapConfig:
    """The paper's head, one heatmap per landmark, and its training (models.heatmap_head, training.maps, training.heatmap)."""

    width: int = ranged(128, 4, 4096, multiple=4)  # channels of its blocks
    loss: str = chosen("cells", "squares", "focal", "softmax")  # training.targets.loss
    sigma_px: float = ranged(8.0, 1.0, 100.0)  # of the Gaussian targets
    floor: float = ranged(0.1, 0.0, 0.99)  # targets below it are zero
    positive_weight: float = ranged(1.0, 0.0, 1e6)  # of a cell at a landmark, against an empty one
    memory_mb: float = ranged(4000.0, 0.0, 1e7)  # of RAM for feature maps; a GPU's memory is used before, a file after
    precision: str = chosen("float16", "bfloat16")  # of feature maps
    patch_px: int = ranged(96, 8, 4096)  # side of the squares cut out of the maps
    patches: int = ranged(16, 1, 65536)  # per step
    positives: float = ranged(0.5, 0.0, 1.0)  # share of patches that hold a visible landmark
    steps: int = ranged(3000, 1, 10**9)  # at most
    max_seconds: float = ranged(0.0, 0.0, 1e7)  # of training; 0: no limit
    learning_rate: float = ranged(3e-3, 1e-8, 1.0)
    weight_decay: float = ranged(0.01, 0.0, 1.0)
    schedule: str = chosen("cosine", "halving")  # of the learning rate, over all steps
    warm_up: float = ranged(0.05, 0.0, 0.99)  # of all steps
    halvings: int = ranged(4, 0, 30)
    validation_fraction: float = ranged(0.04, 0.0, 0.5)  # of the training frames, which then tell when to stop
    check_every: int = ranged(250, 1, 10**9)  # steps between looks at them
    patience: int = ranged(5, 1, 10**6)  # looks without a gain of recall after which training stops
    reach: int = ranged(2, 1, 20)  # cells from the peak over which decoding takes the centroid
    power: float = ranged(2.0, 0.1, 10.0)  # of the scores in it
    threshold: float = ranged(0.1, 0.0, 1.0)  # of the peak's score, below which a cell does not count in it


@dataclass(frozen=True)
class HeadConfig:
    """The cell classifier and its training (models.heads, training.head), or another head."""

    kind: str = "cells"  # "prototype", or "heatmap": the paper's
    heatmap: HeatmapConfig = field(default_factory=HeatmapConfig)
    hidden: int = 256
    prototype_temperature: float = 0.05
    samples: int = 4_000_000
    batch: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warm_up: float = 0.15  # of all steps
    label_smoothing: float = 0.1
    offset_weight: float = 0.5
    patience: int = ranged(0, 0, 10_000)  # checks of held-out cells without gain, then training ends early; 0: never, none held out
    check_steps: int = ranged(50, 1, 10**6)  # between checks
    min_gain: float = ranged(0.01, 0.0, 10.0)  # of the loss on held-out cells, to count as one
    held_out_cells: int = ranged(20_000, 1, 10**7)  # at most a tenth of all
    cool_down: float = ranged(0.3, 0.0, 10.0)  # steps over which the learning rate then runs down, as part of those done


@dataclass(frozen=True)
class DecodeConfig:
    """From score maps to detections (heatmap.decode), and at which rolls an image is tried (localizer)."""

    roll_margin_deg: float = 45.0  # beyond the rolls of the mapping drive; 0 saves time on a robot that never rolls
    min_score: float = 0.3
    guided_min_score: float = 0.02
    guided_radius_cell: float = 2.0
    guided_margin_px: float = ranged(8.0, 0.0, 1000.0)  # from the image's border; landmarks closer to it are not looked for again


@dataclass(frozen=True)
class PnpConfig:
    """Pose from detections (pnp)."""

    ransac_px: float = 12.0
    max_iterations: int = 2000
    robust_px: float = 2.0  # scale of the Cauchy loss
    inlier_px: float = 6.0
    min_inliers: int = 10
    min_inlier_ratio: float = 0.15
    max_position_sigma_m: float = 0.3
    max_relative_sigma: float = 0.02  # of the position, as part of the median distance of the landmarks used
    max_rotation_sigma_rad: float = 0.1


@dataclass(frozen=True)
class SceneConfig:
    """All that teaching a scene and localizing in it depends on; stored in the scene file."""

    backbone: str = "lite0+xfeat"
    backbone_weights: str = ""  # see models.backbone: empty for its own, random, or a file of `sld train backbone`
    seed: int = 0
    validation_fraction: float = 0.05  # of the frames, held out in contiguous chunks
    image: ImageConfig = field(default_factory=ImageConfig)
    bag: BagConfig = field(default_factory=BagConfig)
    tracks: TrackConfig = field(default_factory=TrackConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    pnp: PnpConfig = field(default_factory=PnpConfig)


RANGES = {  # of every number that could ask for endless work or memory; the others may be any finite number
    "max_side_px": (64, 4096), "jpeg_quality": (1, 100), "max_frames": (3, 100_000), "max_features": (100, 50_000),
    "neighbours": (1, 1000), "count": (20, 20_000), "min_views": (2, 1000),
    "spacing_shrink": (0.1, 0.95), "augmented_passes": (0, 100), "background_cells": (0, 100_000),
    "positive_radius_cell": (0.5, 10.0), "ignore_radius_cell": (0.5, 20.0), "min_scale": (0.1, 1.0), "max_scale": (1.0, 10.0),
    "max_tilt_deg": (0.0, 80.0), "channels": (1, 4096), "hidden": (1, 4096), "samples": (1, 10**10), "batch": (1, 10**6),
    "prototype_temperature": (1e-3, 10.0), "roll_margin_deg": (0.0, 180.0), "guided_radius_cell": (0.5, 20.0),
    "max_iterations": (1, 100_000), "validation_fraction": (0.0, 0.5), "seed": (0, 2**31 - 1),
}
BACKBONES = ("lite0", "xfeat", "lite0+xfeat", "resnext101", "resnext101-layer3", "resnext101-layer2", "efficientnet-b0", "efficientnet-b1",
             "efficientnet-b2", "efficientnet-b3", "efficientnet-b4", "swin-t")
CHOICES = {"kind": ("cells", "prototype", "heatmap"), "backbone": BACKBONES}


def from_dict(values: dict[str, Any], kind: type = SceneConfig):
    """A configuration from nested plain values; absent keys take their defaults, an unknown key, a wrong type or a value
    out of range raises. Ranges and choices stand in the
    field's metadata (`ranged`, `chosen`), or in RANGES and CHOICES."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SldError(f"unknown setting {', '.join(unknown)} in {kind.__name__}; known are {', '.join(known)}")
    defaults = kind()
    out = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise SldError(f"setting {name}: expected a group of settings, got {value!r}")
            out[name] = from_dict(value, type(default))
        else:
            out[name] = _checked(known[name], float(value) if isinstance(default, float) and type(value) is int else value, default)
    return kind(**out)


def _checked(known: dataclasses.Field, value, default):
    name = known.name
    if type(value) is not type(default):
        raise SldError(f"setting {name}: expected {type(default).__name__} like {default!r}, got {value!r}")
    low, high = known.metadata.get("range") or RANGES.get(name, (-math.inf, math.inf))
    if type(value) in (int, float) and not (math.isfinite(value) and low <= value <= high):
        raise SldError(f"setting {name}={value}: expected a number from {low} to {high}")
    if (multiple := known.metadata.get("multiple", 1)) > 1 and value % multiple:
        raise SldError(f"setting {name}={value}: expected a multiple of {multiple}")
    choices = known.metadata.get("choices") or CHOICES.get(name, (value,))
    if value not in choices:
        raise SldError(f"setting {name}={value!r}: expected one of {', '.join(choices)}")
    return value


def to_dict(config) -> dict[str, Any]:
    """Nested plain values, ready for JSON; `from_dict` reads them back equal."""
    return dataclasses.asdict(config)


def override(config, settings: list[str]):
    """`config` with settings given as text, such as "head.hidden=512"; unknown names and unreadable values raise."""
    values = to_dict(config)
    for setting in settings:
        path, _, text = setting.partition("=")
        *groups, name = path.split(".")
        group = values
        for key in groups:
            group = group.get(key) if isinstance(group, dict) else None
        if not isinstance(group, dict) or isinstance(group.get(name), dict) or name not in group:
            meant = " or ".join(_named(name, values))
            raise SldError(f"setting {setting!r}: no such setting; " + (f"did you mean {meant}?" if meant else
                           "expected group.name=value, such as head.hidden=256"))
        group[name] = _parse(setting, text, group[name])
    return from_dict(values, type(config))


def _named(name: str, values: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings of this name, with the groups that they belong to."""
    here = [prefix + name] if name in values and not isinstance(values[name], dict) else []
    return here + [path for group, inner in values.items() if isinstance(inner, dict) for path in _named(name, inner, f"{prefix}{group}.")]


def _parse(setting: str, text: str, default):
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise SldError(f"setting {setting!r}: expected true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise SldError(f"setting {setting!r}: expected {type(default).__name__} like {default!r}") from None
