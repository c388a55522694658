"""Settings of a scene: how it is made from a drive, taught, and localized in."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.settings import chosen, ranged
from sld_core.types import SldError

MIN_LANDMARKS = 20  # fewer make no scene
BACKBONES = (  # how each is made is in models.backbone
    "lite0",
    "xfeat",
    "lite0+xfeat",
    "resnext101",
    "resnext101-layer3",
    "resnext101-layer2",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "swin-t",
)


@dataclass(frozen=True)
class ImageConfig:
    max_side_px: int = ranged(640, 64, 4096)  # larger images are scaled down to this first


@dataclass(frozen=True)
class BagConfig:
    """Topics and frames of a bag, and which of its images are kept (data.bag)."""

    image_topic: str = ""  # empty: the only image topic of the bag
    camera_info_topic: str = ""  # empty: the one beside the image topic
    # depth images registered to the camera; empty: the only one of the image's shape, if any
    depth_topic: str = ""
    camera_frame: str = ""  # optical frame; empty: the frame_id of the images
    # empty: the highest frame (map before odom) whose pose is known for most images
    world_frame: str = ""
    rectified: bool = False  # images are rectified already (image_rect): use P and no distortion
    # An image is kept when the camera has moved this far since the last one kept, or turned this
    # much, or this much time has passed. Any of the three at 0 keeps all images.
    min_translation_m: float = ranged(0.05, 0.0, 1e9)
    min_rotation_deg: float = ranged(5.0, 0.0, 1e9)
    max_interval_s: float = ranged(2.0, 0.0, 1e9)
    # The three thresholds grow together until no more images than this are kept.
    max_frames: int = ranged(300, 3, 100_000)
    jpeg_quality: int = ranged(95, 1, 100)


@dataclass(frozen=True)
class TrackConfig:
    """SIFT tracks triangulated with given poses (sfm.triangulation)."""

    max_features: int = ranged(2500, 100, 50_000)  # per image
    neighbours: int = ranged(20, 1, 1000)  # images each image is matched with
    max_view_angle_deg: float = ranged(60.0, 0.1, 180.0)  # between the optical axes of a pair
    # bundle adjustment of the given poses, where it helps; the result is moved back to their frame
    refine_poses: bool = True
    good_reprojection_px: float = ranged(1.0, 0.0, 100.0)  # mean error that needs no refinement
    # refined poses are taken if the error falls, or the observations grow, by this factor
    refine_gain: float = ranged(0.85, 0.0, 1.0)
    prior_sigma_m: float = ranged(0.05, 1e-6, 1000.0)  # of given positions, when poses are refined
    loose_reprojection_px: float = ranged(8.0, 0.1, 1000.0)  # with poses as given
    reprojection_px: float = ranged(4.0, 0.1, 1000.0)  # after refinement
    min_triangulation_deg: float = ranged(1.5, 0.0, 90.0)
    # as sfm.depth_spread, sfm.depth_baseline_m and sfm.depth_jump of `sld map`: depth images take
    # part where poses are refined and the depths of frames contradict each other
    depth_spread: float = ranged(0.08, 0.0, 10.0)
    depth_baseline_m: float = ranged(0.1, 0.0, 10.0)
    depth_jump: float = ranged(0.05, 1e-4, 1.0)


@dataclass(frozen=True)
class LandmarkConfig:
    """Which triangulated points become landmarks (landmarks.selection)."""

    # 0: `base_count`, and more for frames that see fewer than `per_view` of them, if need be points
    # of only `fallback_views`, up to `max_count` in all
    count: int = ranged(0, 0, 20_000)
    base_count: int = ranged(1000, MIN_LANDMARKS, 20_000)
    max_count: int = ranged(4000, MIN_LANDMARKS, 20_000)
    per_view: int = ranged(60, 0, 1000)
    min_views: int = ranged(6, 2, 1000)
    fallback_views: int = ranged(4, 2, 1000)
    max_error_px: float = ranged(2.0, 0.01, 100.0)  # mean reprojection error
    min_span_deg: float = ranged(3.0, 0.0, 180.0)  # angle between the extreme viewing directions
    # between neighbours in the first pass, as a fraction of the diameter of all points; 0: any
    first_spacing: float = ranged(0.1, 0.0, 1.0)
    spacing_shrink: float = ranged(0.7, 0.1, 0.95)  # per pass
    # weight of matchability beside the saliency, which is 1 to 4; 0 takes no time
    matchability_weight: float = ranged(0.0, 0.0, 1e6)
    matchability_frames: int = ranged(40, 2, 10_000)  # images in which points are compared
    matchability_views: int = ranged(3, 2, 100)  # wanted of each point
    # cells of an image, and other points, that each point is compared with
    matchability_rivals: int = ranged(1500, 10, 1_000_000)
    matchability_temperature: float = ranged(0.05, 1e-3, 10.0)  # of the softmax over cosines

    def __post_init__(self):
        if 0 < self.count < MIN_LANDMARKS:
            raise SldError(
                f"landmarks.count={self.count}: expected at least {MIN_LANDMARKS}, or 0 for as "
                "many as the place needs"
            )


@dataclass(frozen=True)
class LabelConfig:
    """Which frames show which landmarks (landmarks.visibility)."""

    use_depth: bool = True  # of frames that have a depth image
    depth_shows: bool = True  # a depth that agrees makes VISIBLE; otherwise only tracks do
    # a depth that differs by less than this fraction agrees
    depth_tolerance: float = ranged(0.05, 0.0, 0.5)
    # a measured depth below this fraction of the landmark's depth hides the landmark
    occluded_ratio: float = ranged(0.7, 0.0, 1.0)
    depth_reach_px: int = ranged(1, 0, 10)  # depth pixels to each side that are looked at
    use_normals: bool = True  # of landmarks, where depth images give them
    normal_max_deg: float = ranged(80.0, 0.0, 180.0)  # seen at a larger angle: HIDDEN


@dataclass(frozen=True)
class BufferConfig:
    """The buffer of training cells and the augmentation of its images (training.feature_buffer)."""

    augmented_passes: int = ranged(2, 0, 100)
    background_cells: int = ranged(500, 0, 100_000)  # per image
    positive_radius_cell: float = ranged(1.2, 0.5, 10.0)
    ignore_radius_cell: float = ranged(2.5, 0.5, 20.0)
    max_rotation_deg: float = ranged(15.0, 0.0, 180.0)
    max_tilt_deg: float = ranged(0.0, 0.0, 80.0)  # as if the camera swung around what it sees
    min_scale: float = ranged(0.7, 0.1, 1.0)
    max_scale: float = ranged(1.4, 1.0, 10.0)
    contrast: float = ranged(0.2, 0.0, 1.0)
    brightness: float = ranged(25.0, 0.0, 255.0)  # grey levels, 0 to 255
    channel_shift: float = ranged(8.0, 0.0, 255.0)  # grey levels, each colour by itself
    blur_probability: float = ranged(0.3, 0.0, 1.0)
    noise: float = ranged(3.0, 0.0, 255.0)  # standard deviation in grey levels
    channels: int = ranged(128, 1, 4096)  # after whitening
    processes: int = ranged(1, 1, 256)  # that fill the buffer, on each rank of torchrun


@dataclass(frozen=True)
class TargetConfig:
    """The heatmaps that a network learns, and the loss (training.targets)."""

    loss: str = chosen("cells", "squares", "focal", "softmax")
    sigma_px: float = ranged(8.0, 1.0, 200.0)  # of the Gaussian around each landmark
    floor: float = ranged(0.1, 0.0, 0.99)  # values below it are zero
    positive_weight: float = ranged(1.0, 0.0, 1e6)  # of a cell at a landmark, against an empty one


@dataclass(frozen=True)
class ScheduleConfig:
    """AdamW and its learning rate over a training (training.schedule)."""

    kind: str = chosen("cosine", "halving")
    learning_rate: float = ranged(3e-3, 1e-8, 1.0)  # the largest
    weight_decay: float = ranged(0.01, 0.0, 10.0)
    warm_up: float = ranged(0.05, 0.0, 0.99)  # fraction of all steps
    halvings: int = ranged(4, 0, 30)  # of kind "halving", spread evenly


@dataclass(frozen=True)
class HeatmapConfig:
    """The paper's head, one heatmap per landmark, and its training (models.heatmap_head,
    training.feature_map_buffer, training.train_heatmap_head)."""

    width: int = ranged(128, 4, 4096, multiple=4)  # channels of its blocks
    target: TargetConfig = field(default_factory=TargetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    # RAM for feature maps; GPU memory is used first, and a file when RAM is full
    memory_mb: float = ranged(4000.0, 0.0, 1e7)
    precision: str = chosen("float16", "bfloat16")  # of feature maps
    patch_px: int = ranged(96, 8, 4096)  # side of the squares cut out of the maps
    patches: int = ranged(16, 1, 65536)  # per step
    positives: float = ranged(0.5, 0.0, 1.0)  # fraction of patches with a visible landmark
    steps: int = ranged(3000, 1, 10**9)  # at most
    max_seconds: float = ranged(0.0, 0.0, 1e7)  # of training; 0: no limit
    # fraction of the training frames that is held out to decide when to stop
    validation_fraction: float = ranged(0.04, 0.0, 0.5)
    check_every: int = ranged(250, 1, 10**9)  # steps between validations
    patience: int = ranged(5, 1, 10**6)  # validations without improvement before training stops
    reach: int = ranged(2, 1, 20)  # cells around the peak over which decoding takes the centroid
    power: float = ranged(2.0, 0.1, 10.0)  # of the scores in the centroid
    threshold: float = ranged(0.1, 0.0, 1.0)  # fraction of the peak below which cells do not count


@dataclass(frozen=True)
class HeadConfig:
    """The scene head and the training of the cell classifier (models.heads,
    training.train_cell_head)."""

    kind: str = chosen("cells", "prototype", "heatmap")  # the last one is the paper's
    heatmap: HeatmapConfig = field(default_factory=HeatmapConfig)
    hidden: int = ranged(256, 1, 4096)
    prototype_temperature: float = ranged(0.05, 1e-3, 10.0)
    samples: int = ranged(4_000_000, 1, 10**10)
    batch: int = ranged(4096, 1, 10**6)
    learning_rate: float = ranged(3e-3, 1e-8, 1.0)
    weight_decay: float = ranged(0.01, 0.0, 10.0)
    warm_up: float = ranged(0.15, 0.0, 0.99)  # fraction of all steps
    label_smoothing: float = ranged(0.1, 0.0, 0.99)
    offset_weight: float = ranged(0.5, 0.0, 1000.0)
    # Early stopping: after this many checks of held-out cells without gain; 0: never, and no cell
    # is held out.
    patience: int = ranged(0, 0, 10_000)
    check_steps: int = ranged(50, 1, 10**6)  # between checks
    min_gain: float = ranged(0.01, 0.0, 10.0)  # of the loss on held-out cells
    held_out_cells: int = ranged(20_000, 1, 10**7)  # at most a tenth of all
    # steps over which the learning rate then runs down, as a fraction of the steps done
    cool_down: float = ranged(0.3, 0.0, 10.0)


@dataclass(frozen=True)
class DecodeConfig:
    """From score maps to detections (heatmap.decode), and at which rolls an image is tried
    (localizer)."""

    # beyond the rolls of the mapping drive; every 35 degrees cost as much as a query
    roll_margin_deg: float = ranged(0.0, 0.0, 180.0)
    min_score: float = ranged(0.3, 0.0, 1.0)
    # attempts with lower scores, where the fine pass can judge what comes of them, and by what
    # factor each is lower
    retries: int = ranged(2, 0, 10)
    retry_factor: float = ranged(0.3, 0.01, 1.0)
    guided_min_score: float = ranged(0.02, 0.0, 1.0)
    guided_radius_cell: float = ranged(2.0, 0.5, 20.0)
    # landmarks closer than this to the image's border are not looked for again
    guided_margin_px: float = ranged(8.0, 0.0, 1000.0)


@dataclass(frozen=True)
class FineConfig:
    """The fine pass (fine_pass). Pixels are those of the image scaled to `image.max_side_px`, and
    at the finer levels of detail those of the level."""

    use: bool = True
    radius_px: int = ranged(5, 2, 20)  # templates have 2 * radius_px + 1 pixels a side
    # Images larger than image.max_side_px are searched in more detail, up to this size.
    max_side_px: int = ranged(1920, 64, 8192)
    min_views: int = ranged(3, 1, 1000)  # mapping frames that a template is the mean of
    # A landmark is looked for from directions up to this much beyond those of the mapping frames
    # that saw it, and from distances up to this factor.
    beyond_deg: float = ranged(60.0, 0.0, 180.0)
    beyond_distance: float = ranged(3.0, 1.0, 100.0)
    max_landmarks: int = ranged(500, 10, 20_000)  # in one image; the first chosen ones
    # around each projection, in pixels of the level; the first one has half the working image's
    first_search_px: int = ranged(6, 2, 50)
    search_px: int = ranged(4, 2, 50)
    landmark_sigma_px: float = ranged(1.0, 0.0, 100.0)  # of the views that a landmark is made from
    min_similarity: float = ranged(0.7, 0.0, 1.0)
    inlier_px: float = ranged(4.0, 0.1, 1000.0)
    noise: float = ranged(18.0, 0.0, 1e6)  # variance of a template's misfit, per 1 - similarity
    floor_px: float = ranged(0.3, 0.01, 100.0)  # standard deviation that no detection falls below
    min_inliers: int = ranged(6, 4, 10_000)  # of a pose that is worth a fine pass
    # A landmark agrees with a pose that puts it within `agree_px` of where it was found, on both of
    # the coarsest levels of detail. A pose needs `min_found` of them, and unless they are more than
    # `clear_share` of those looked for, more than chance finds in the same image, by `min_score`
    # standard deviations.
    agree_px: float = ranged(2.0, 0.1, 100.0)
    min_found: int = ranged(8, 0, 10_000)
    clear_share: float = ranged(0.08, 0.0, 1.0)
    min_score: float = ranged(10.0, 0.0, 1000.0)


@dataclass(frozen=True)
class PnpConfig:
    """Pose from detections (pnp). Pixels are those of the image scaled to `image.max_side_px`."""

    ransac_px: float = ranged(12.0, 0.1, 1000.0)
    max_iterations: int = ranged(2000, 1, 100_000)
    robust_px: float = ranged(2.0, 0.01, 1000.0)  # scale of the Cauchy loss
    inlier_px: float = ranged(6.0, 0.1, 1000.0)
    min_inliers: int = ranged(10, 4, 10_000)
    min_inlier_ratio: float = ranged(0.15, 0.0, 1.0)
    max_position_sigma_m: float = ranged(0.3, 1e-6, 1e6)
    # of the position, as a fraction of the median distance of the landmarks used
    max_relative_sigma: float = ranged(0.02, 1e-6, 1e6)
    max_rotation_sigma_rad: float = ranged(0.1, 1e-6, 10.0)


@dataclass(frozen=True)
class SceneConfig:
    """Everything that teaching a scene and localizing in it depends on; kept in the scene file."""

    backbone: str = chosen("lite0+xfeat", *BACKBONES)
    # empty for its own, "imagenet", "random", or a file of `sld train backbone` (models.backbone)
    backbone_weights: str = ""
    seed: int = ranged(0, 0, 2**31 - 1)
    # of the frames, held out in contiguous chunks
    validation_fraction: float = ranged(0.05, 0.0, 0.5)
    image: ImageConfig = field(default_factory=ImageConfig)
    bag: BagConfig = field(default_factory=BagConfig)
    tracks: TrackConfig = field(default_factory=TrackConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    fine: FineConfig = field(default_factory=FineConfig)
    pnp: PnpConfig = field(default_factory=PnpConfig)
