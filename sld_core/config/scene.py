"""Every tunable of a scene, once, with its unit and its default."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.settings import chosen, ranged


@dataclass(frozen=True)
class ImageConfig:
    max_side_px: int = 640  # larger images are scaled down to this before anything else


@dataclass(frozen=True)
class BagConfig:
    """Which topics and frames of a bag to use, and which of its images to keep (data.bag)."""

    image_topic: str = ""  # empty: the only image topic of the bag
    camera_info_topic: str = ""  # empty: the one beside the image topic
    # depth images registered to the camera; empty: the only one of the image's shape, if any
    depth_topic: str = ""
    camera_frame: str = ""  # optical frame; empty: the frame_id of the images
    world_frame: str = (
        ""  # empty: the highest frame (map before odom) whose pose is known for most images
    )
    rectified: bool = (
        False  # the images are rectified already (image_rect): use P and no distortion
    )
    min_translation_m: float = ranged(
        0.05, 0.0, 1e9
    )  # keep an image when it moved this far from the last one kept,
    min_rotation_deg: float = ranged(5.0, 0.0, 1e9)  # or turned this much,
    max_interval_s: float = ranged(
        2.0, 0.0, 1e9
    )  # or this much time passed; any of the three 0: keep all
    # the three thresholds grow together until no more are kept; all of them are thinned evenly
    max_frames: int = 300
    jpeg_quality: int = 95


@dataclass(frozen=True)
class TrackConfig:
    """SIFT tracks triangulated with known poses (sfm.triangulation)."""

    max_features: int = 2500  # per image
    neighbours: int = 20  # images each image is matched with
    max_view_angle_deg: float = 60.0  # between the optical axes of a matched pair
    refine_poses: bool = (
        True  # bundle adjustment of the given poses, where it helps, then back into their frame
    )
    good_reprojection_px: float = 1.0  # mean error below which given poses are left alone
    refine_gain: float = (
        0.85  # refined poses are taken if the error falls, or the observations grow, by this factor
    )
    prior_sigma_m: float = 0.05  # of each given position, when poses are refined
    loose_reprojection_px: float = 8.0  # first triangulation, with the poses as given
    reprojection_px: float = 4.0  # after refinement
    min_triangulation_deg: float = 1.5


@dataclass(frozen=True)
class LandmarkConfig:
    """Which track points become landmarks (landmarks.selection)."""

    count: int = 1000
    min_views: int = 6
    max_error_px: float = 2.0
    min_span_deg: float = 3.0  # angle between the extreme viewing directions
    first_spacing: float = ranged(
        0.1, 0.0, 1.0
    )  # of the diameter of the scene's points, between neighbours in the first pass; 0: any
    spacing_shrink: float = 0.7  # per pass
    matchability_weight: float = ranged(
        0.0, 0.0, 1e6
    )  # beside the saliency, which is 1 to 4; 0 takes no time
    matchability_frames: int = ranged(
        40, 2, 10_000
    )  # images in which points are compared (landmarks.matchability)
    matchability_views: int = ranged(3, 2, 100)  # wanted of each point
    matchability_rivals: int = ranged(
        1500, 10, 1_000_000
    )  # cells of an image, and other points, that each is compared with
    matchability_temperature: float = ranged(0.05, 1e-3, 10.0)  # of the softmax over cosines


@dataclass(frozen=True)
class LabelConfig:
    """Visibility of landmarks in frames (landmarks.visibility)."""

    use_depth: bool = True  # of the frames that have a depth image
    depth_shows: bool = True  # a depth image that agrees makes VISIBLE; else only tracks do
    depth_tolerance: float = ranged(
        0.05, 0.0, 0.5
    )  # relative: nearer than this to the measured depth is VISIBLE
    occluded_ratio: float = ranged(
        0.7, 0.0, 1.0
    )  # measured depth below this part of the landmark's depth: HIDDEN
    depth_reach_px: int = ranged(
        1, 0, 10
    )  # depth pixels to either side that count as the landmark's: edges are not exact
    use_normals: bool = True  # of landmarks, where depth images tell them
    normal_max_deg: float = ranged(
        80.0, 0.0, 180.0
    )  # seen more slanted than this, or from behind: HIDDEN


@dataclass(frozen=True)
class BufferConfig:
    """The buffer of training cells (training.feature_buffer)."""

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
    """The paper's head, one heatmap per landmark, and its training (models.heatmap_head,
    training.feature_map_buffer, training.train_heatmap_head)."""

    width: int = ranged(128, 4, 4096, multiple=4)  # channels of its blocks
    loss: str = chosen("cells", "squares", "focal", "softmax")  # training.targets.loss
    sigma_px: float = ranged(8.0, 1.0, 100.0)  # of the Gaussian targets
    floor: float = ranged(0.1, 0.0, 0.99)  # targets below it are zero
    positive_weight: float = ranged(1.0, 0.0, 1e6)  # of a cell at a landmark, against an empty one
    memory_mb: float = ranged(
        4000.0, 0.0, 1e7
    )  # of RAM for feature maps; a GPU's memory is used before, a file after
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
    validation_fraction: float = ranged(
        0.04, 0.0, 0.5
    )  # of the training frames, which then tell when to stop
    check_every: int = ranged(250, 1, 10**9)  # steps between looks at them
    patience: int = ranged(5, 1, 10**6)  # looks without a gain of recall after which training stops
    reach: int = ranged(2, 1, 20)  # cells from the peak over which decoding takes the centroid
    power: float = ranged(2.0, 0.1, 10.0)  # of the scores in it
    threshold: float = ranged(
        0.1, 0.0, 1.0
    )  # of the peak's score, below which a cell does not count in it


@dataclass(frozen=True)
class HeadConfig:
    """The cell classifier and its training (models.heads, training.train_cell_head), or another
    head."""

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
    patience: int = ranged(
        0, 0, 10_000
    )  # checks of held-out cells without gain, then training ends early; 0: never, none held out
    check_steps: int = ranged(50, 1, 10**6)  # between checks
    min_gain: float = ranged(0.01, 0.0, 10.0)  # of the loss on held-out cells, to count as one
    held_out_cells: int = ranged(20_000, 1, 10**7)  # at most a tenth of all
    cool_down: float = ranged(
        0.3, 0.0, 10.0
    )  # steps over which the learning rate then runs down, as part of those done


@dataclass(frozen=True)
class DecodeConfig:
    """From score maps to detections (heatmap.decode), and at which rolls an image is tried
    (localizer)."""

    roll_margin_deg: float = (
        45.0  # beyond the rolls of the mapping drive; 0 saves time on a robot that never rolls
    )
    min_score: float = 0.3
    guided_min_score: float = 0.02
    guided_radius_cell: float = 2.0
    guided_margin_px: float = ranged(
        8.0, 0.0, 1000.0
    )  # from the image's border; landmarks closer to it are not looked for again


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
    max_relative_sigma: float = (
        0.02  # of the position, as part of the median distance of the landmarks used
    )
    max_rotation_sigma_rad: float = 0.1


@dataclass(frozen=True)
class SceneConfig:
    """All that teaching a scene and localizing in it depends on; stored in the scene file."""

    backbone: str = "lite0+xfeat"
    backbone_weights: str = (
        ""  # see models.backbone: empty for its own, random, or a file of `sld train backbone`
    )
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
