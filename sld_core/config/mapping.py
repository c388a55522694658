"""Settings of mapping (`sld map`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.scene import (
    BACKBONES,
    BagConfig,
    ImageConfig,
    LabelConfig,
    LandmarkConfig,
)
from sld_core.config.settings import chosen, ranged


@dataclass(frozen=True)
class FramesConfig:
    """Which images of videos, folders and bags without poses are kept (data.sources)."""

    fps: float = ranged(4.0, 0.01, 120.0)  # of videos, and of bags without poses
    # drops images whose sharpness is below this fraction of their neighbours' median; 0 keeps all,
    # 0.5 drops 0 to 9 % of usual drives
    reject_blurred: float = ranged(0.0, 0.0, 1.0)
    # drops images that differ from the last one kept by less than this, in mean grey levels (0 to
    # 255); 0 keeps all, 1 drops what stands still
    reject_similar: float = ranged(0.0, 0.0, 50.0)
    jpeg_quality: int = ranged(95, 1, 100)  # of photographs and videos; a bag has its own


@dataclass(frozen=True)
class SfmConfig:
    """Structure from motion (sfm.solve)."""

    # sequential: neighbours in time, and images that look alike; auto: exhaustive for small sets
    matching: str = chosen("auto", "exhaustive", "sequential")
    max_features: int = ranged(2500, 100, 50_000)  # per image
    exhaustive_up_to: int = ranged(60, 0, 1000)  # images, with matching "auto"
    overlap: int = ranged(5, 1, 1000)  # following images of its session each image is matched with
    retrieval_pairs: int = ranged(
        12, 0, 1000
    )  # images each is matched with because they look alike
    revisit_pairs: int = ranged(12, 0, 1000)  # the same, from another pass through the place
    bridge_rounds: int = ranged(3, 0, 100)  # of further pairs, while the images fall into parts
    min_bridge: int = ranged(50, 10, 10_000)  # verified matches that connect two images
    # points that two images of the finished model must share to count as connected
    min_shared: int = ranged(20, 1, 10_000)
    # incremental: image by image; global: all at once; posed: given poses are refined and no image
    # is lost; auto: incremental, and global where matched pairs do not agree with the result
    mapper: str = chosen("auto", "incremental", "global", "posed")
    # per image, plus a minute: after that "auto" gives up the incremental mapper
    patience_s: float = ranged(1.0, 0.01, 1000.0)
    good_agreement: float = ranged(
        0.99, 0.0, 1.0
    )  # fraction of matched pairs that a model explains
    # window of the first search for missing observations; 0 leaves tracks as matched
    completion_px: float = ranged(8.0, 0.0, 50.0)
    completion_view_deg: float = ranged(60.0, 1.0, 180.0)  # from a point's mean viewing direction
    completion_min_cosine: float = ranged(0.92, 0.0, 1.0)  # between descriptors
    # images each is matched with, by its pose, before points are triangulated again from matches
    # alone; 0 keeps the points of completed tracks, and depth images then take no part either
    neighbours: int = ranged(20, 0, 1000)
    max_view_angle_deg: float = ranged(60.0, 1.0, 180.0)  # between the optical axes of such a pair
    track_reprojection_px: float = ranged(4.0, 0.5, 50.0)  # of the points triangulated again
    min_triangulation_deg: float = ranged(1.5, 0.0, 30.0)  # between the rays that make a point
    # Depth images take part in the last bundle adjustment, like a second camera `depth_baseline_m`
    # beside the first with a pixel's error, where the scale of one image in ten differs from the
    # map's by this much (kitchen .013, office .045, desk .4); 0: never.
    depth_spread: float = ranged(0.08, 0.0, 10.0)
    depth_baseline_m: float = ranged(0.1, 0.0, 10.0)
    depth_jump: float = ranged(0.05, 1e-4, 1.0)  # as metric.depth_jump
    # observations with a larger error are dropped while poses are adjusted (points triangulated
    # again allow 4 px): 2.5 px and a cosine of 0.92 make a head 0.83 cm precise where 4 px and 0.85
    # make it 1.26 cm (kitchen)
    reprojection_px: float = ranged(2.5, 0.5, 50.0)


@dataclass(frozen=True)
class MetricConfig:
    """Scale and uprightness (metric.align)."""

    # auto: the first that the input allows
    source: str = chosen("auto", "odometry", "depth", "tags", "distance", "none")
    # a note is written where scales from two sources differ by more than this fraction
    max_disagreement: float = ranged(0.05, 0.001, 1.0)
    # odometry, TF or poses of the user
    min_baseline_m: float = ranged(0.3, 0.001, 1000.0)  # extent of a drive that gives a scale
    # relative, from the scales found when stretches of the drive are left out in turn
    max_scale_sigma: float = ranged(0.05, 1e-4, 1.0)
    # median position error, as a fraction of the extent of the drive
    max_odometry_misfit: float = ranged(0.2, 0.001, 1.0)
    max_odometry_deg: float = ranged(15.0, 0.1, 180.0)  # median orientation error
    odometry_noise_m: float = ranged(0.01, 1e-6, 1.0)  # smaller position errors weigh the same
    odometry_noise_deg: float = ranged(0.2, 1e-4, 10.0)
    # of orientations beside positions: their errors (mounting, drift) repeat from frame to frame,
    # so they count less
    orientation_weight: float = ranged(0.3, 1e-6, 1.0)
    # depth images
    max_depth_frames: int = ranged(200, 1, 100_000)
    min_depth_samples: int = ranged(100, 1, 10**9)
    depth_jump: float = ranged(0.05, 1e-4, 1.0)  # relative spread in 3x3 pixels that is an edge
    # median deviation of the ratios from their median
    max_depth_spread: float = ranged(0.15, 0.001, 1.0)
    # a note is written where one frame in ten deviates by more (kitchen .013, office .045)
    max_depth_frame_spread: float = ranged(0.08, 0.001, 1.0)
    # tags
    tag_size_m: float = ranged(0.0, 0.0, 100.0)  # side of the black square; 0: there are no tags
    tag_family: str = chosen("apriltag_36h11", "apriltag_25h9", "apriltag_16h5", "aruco_4x4_50")
    max_tag_frames: int = ranged(400, 2, 100_000)
    tag_reprojection_px: float = ranged(2.0, 0.1, 100.0)  # of every corner in a view that agrees
    min_tag_parallax_deg: float = ranged(2.0, 0.01, 90.0)
    max_tag_skew: float = ranged(0.1, 0.001, 1.0)  # relative, between sides and diagonals of a tag
    # measured distances, such as "image-000000 image-000041 3.20; lobby.jpg:312,200
    # lobby.jpg:400,210 1.85"
    distance: str = ""
    pick_radius_px: float = ranged(8.0, 0.5, 1000.0)  # from a click to the nearest known point
    # up
    max_tilt_deg: float = ranged(35.0, 1.0, 40.0)  # of planes, from the up direction of the images
    plane_tolerance: float = ranged(0.01, 1e-5, 0.5)  # fraction of the median depth of the points
    plane_agreement_deg: float = ranged(3.0, 0.1, 20.0)  # between a plane and the up it supports
    min_plane_share: float = ranged(0.03, 0.001, 1.0)  # of the points, on one plane
    min_up_share: float = ranged(0.15, 0.001, 1.0)  # of the points, on all planes that agree on up


@dataclass(frozen=True)
class GaussianProcessConfig:
    """Depth completion by a Gaussian process (depth.gaussian_process). A length is the distance at
    which the log depths of two pixels, less the mean function, are correlated by 1/e."""

    work_side_px: int = ranged(160, 16, 640)  # longer side of the image it works on
    samples: int = ranged(1300, 50, 4000)  # known pixels it learns from
    length: float = ranged(0.7, 0.01, 10.0)  # over the image, as a fraction of its longer side
    # over monocular depth, in its standard deviations within the image
    mono_length: float = ranged(3.5, 0.01, 100.0)
    # over CIE L, 0 black to 1 white; half of it over a and b
    color_length: float = ranged(2.5, 0.01, 100.0)
    # sigma of the blur, working pixels: the colour of a surface, not of its pattern
    color_blur_px: float = ranged(2.0, 0.1, 50.0)
    noise: float = ranged(
        0.005, 1e-6, 1.0
    )  # variance of a known value, as a fraction of that of all
    mean_weight: float = ranged(1.0, 0.0, 100.0)  # prior variance of each quadratic coefficient
    # working pixels over which the residual of a known value fades
    reach_px: float = ranged(70.0, 0.1, 10_000.0)
    edge_color: float = ranged(0.04, 1e-3, 10.0)  # colour difference that halves the spreading,
    edge_log_depth: float = ranged(0.1, 1e-3, 10.0)  # and difference of predicted log depth


@dataclass(frozen=True)
class DepthConfig:
    """Dense depth (depth)."""

    # auto: the first that is possible
    source: str = chosen("auto", "sensor", "patchmatch", "completion", "none")
    max_side_px: int = ranged(320, 32, 2048)  # of the depth images written
    # of completion
    method: str = chosen("gaussian_process", "hist_gradient_boosting", "scale_shift", "paper")
    preprocessing: str = chosen("auto", "raw255", "imagenet")  # of the monocular network
    min_known: int = ranged(30, 10, 100_000)  # pixels; frames with fewer are not completed
    # fraction of a frame's sparse points, hidden to measure the error,
    held_out: float = ranged(0.2, 0.01, 0.9)
    held_out_frames: int = ranged(10, 0, 10_000)  # in so many frames, spread over all
    # mean reprojection error of the points that depth is made from or judged by
    max_point_error_px: float = ranged(2.0, 0.01, 100.0)
    max_depth_ratio: float = ranged(1.3, 1.0, 10.0)  # of completed depth to the farthest known one
    gaussian_process: GaussianProcessConfig = field(default_factory=GaussianProcessConfig)


@dataclass(frozen=True)
class SplitConfig:
    """Training, validation and test frames (data.formats.splits)."""

    val: float = ranged(0.05, 0.0, 0.33)  # fraction of all frames
    # fraction of all frames; 0: a robot needs every image, and is tested with a drive of its own
    test: float = ranged(0.0, 0.0, 0.33)
    chunk: int = ranged(10, 1, 100_000)  # about so many frames in a row are held out together
    min_sessions: int = ranged(3, 2, 1000)  # from which on whole sessions are held out for the test
    # fraction of all frames that must remain for training when a session is held out
    min_train: float = ranged(0.5, 0.1, 0.9)
    # fraction of a held-out session's frames that must see what training frames see
    covered: float = ranged(0.8, 0.0, 1.0)
    # Two frames see the same if they are no farther apart than this fraction of the diameter of all
    # camera positions, and their optical axes no more than this angle.
    near: float = ranged(0.1, 0.0, 1.0)
    near_deg: float = ranged(45.0, 0.0, 180.0)


@dataclass(frozen=True)
class MapConfig:
    """Everything that mapping a place depends on."""

    seed: int = ranged(0, 0, 2**31 - 1)
    backbone: str = chosen("lite0+xfeat", *BACKBONES)  # of landmarks.matchability
    image: ImageConfig = field(default_factory=ImageConfig)  # of landmarks.matchability
    bag: BagConfig = field(default_factory=BagConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    sfm: SfmConfig = field(default_factory=SfmConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
