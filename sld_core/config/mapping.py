"""Every tunable of mapping (`sld map`), once, with its unit and its default."""

from __future__ import annotations

from dataclasses import dataclass, field

from sld_core.config.scene import BagConfig, LabelConfig, LandmarkConfig
from sld_core.config.settings import chosen, ranged


@dataclass(frozen=True)
class FramesConfig:
    """Which images of videos, folders and bags without poses to keep (data.sources)."""

    fps: float = ranged(4.0, 0.01, 120.0)  # of videos, and of bags without poses
    # sharpness below this part of its neighbours' median; 0: keep all, 0.5 drops 0-9 % of frames of
    # the shared drives
    reject_blurred: float = ranged(0.0, 0.0, 1.0)
    # mean difference (of 255) to the last frame kept below this; 0: keep all, 1 drops what stands
    # still
    reject_similar: float = ranged(0.0, 0.0, 50.0)
    jpeg_quality: int = ranged(95, 1, 100)


@dataclass(frozen=True)
class SfmConfig:
    """Structure from motion (sfm.solve)."""

    matching: str = chosen(
        "auto", "exhaustive", "sequential"
    )  # sequential: neighbours in time, and what looks alike
    max_features: int = ranged(2500, 100, 50_000)  # per image
    exhaustive_up_to: int = ranged(60, 0, 1000)
    overlap: int = ranged(5, 1, 1000)  # next images of the session that each is matched with
    retrieval_pairs: int = ranged(
        12, 0, 1000
    )  # images that each is matched with because they look alike
    revisit_pairs: int = ranged(12, 0, 1000)  # the same, each from another pass through the place
    bridge_rounds: int = ranged(3, 0, 100)  # further pairs, as long as the place falls into parts
    min_bridge: int = ranged(
        50, 10, 10_000
    )  # matches of one geometry that hold two images together
    min_shared: int = ranged(
        20, 1, 10_000
    )  # points that two images of the finished model must share to hold together
    # incremental: image by image; global: all at once; posed: given poses are refined, no image is
    # lost; auto: incremental, and global where matched pairs do not agree with it
    mapper: str = chosen("auto", "incremental", "global", "posed")
    patience_s: float = ranged(
        1.0, 0.01, 1000.0
    )  # per image, plus a minute: then auto leaves image by image for all at once
    good_agreement: float = ranged(0.99, 0.0, 1.0)  # share of matched pairs that a model explains
    completion_px: float = ranged(
        8.0, 0.0, 50.0
    )  # window of the first search for lost observations; 0: tracks as matched
    completion_view_deg: float = ranged(60.0, 1.0, 180.0)  # from a point's mean viewing direction
    completion_min_cosine: float = ranged(0.92, 0.0, 1.0)  # between descriptors
    # images each is matched with, by its pose, before points are made anew of matches alone; 0:
    # points of completed tracks, and depth images take no part either
    neighbours: int = ranged(20, 0, 1000)
    # depth images take part in the last adjustment where one image in ten disagrees with the map's
    # scale by this (kitchen .013, office .045, desk .4), as a second camera this far beside the
    # first would: with a pixel's error; 0: never
    depth_spread: float = ranged(0.08, 0.0, 10.0)
    depth_baseline_m: float = ranged(0.1, 0.0, 10.0)
    # farther off, observations are dropped while poses are adjusted (points made anew allow 4 px):
    # 2.5 and 0.92 make a head 0.83 cm precise where 4 and 0.85 make it 1.26 (kitchen)
    reprojection_px: float = ranged(2.5, 0.5, 50.0)


@dataclass(frozen=True)
class MetricConfig:
    """Scale and uprightness (metric.align)."""

    source: str = chosen(
        "auto", "odometry", "depth", "tags", "distance", "none"
    )  # auto: the first that the input allows
    max_disagreement: float = ranged(
        0.05, 0.001, 1.0
    )  # of scales from several sources, relative; above, a note says so
    # odometry, TF or poses of the user
    min_baseline_m: float = ranged(
        0.3, 0.001, 1000.0
    )  # the drive must extend this far to give a scale
    max_scale_sigma: float = ranged(
        0.05, 1e-4, 1.0
    )  # relative, as stretches of the drive left out in turn show
    max_odometry_misfit: float = ranged(
        0.2, 0.001, 1.0
    )  # median position error, as part of the extent of the drive
    max_odometry_deg: float = ranged(15.0, 0.1, 180.0)  # median orientation error
    odometry_noise_m: float = ranged(0.01, 1e-6, 1.0)  # position errors below this are all the same
    odometry_noise_deg: float = ranged(0.2, 1e-4, 10.0)
    # of orientations beside positions: their errors (mounting, drift) repeat from frame to frame,
    # so they count less
    orientation_weight: float = ranged(0.3, 1e-6, 1.0)
    # depth images
    max_depth_frames: int = ranged(200, 1, 100_000)
    min_depth_samples: int = ranged(100, 1, 10**9)
    depth_jump: float = ranged(
        0.05, 1e-4, 1.0
    )  # relative spread in 3x3 depth pixels, above which there is an edge
    max_depth_spread: float = ranged(
        0.15, 0.001, 1.0
    )  # median deviation of the ratios from their median
    max_depth_frame_spread: float = ranged(
        0.08, 0.001, 1.0
    )  # of one frame in ten; above, a note says so (kitchen .013, office .045)
    # tags
    tag_size_m: float = ranged(0.0, 0.0, 100.0)  # side of the black square; 0: there are no tags
    tag_family: str = chosen("apriltag_36h11", "apriltag_25h9", "apriltag_16h5", "aruco_4x4_50")
    max_tag_frames: int = ranged(400, 2, 100_000)
    tag_reprojection_px: float = ranged(2.0, 0.1, 100.0)  # of every corner in a view that agrees
    min_tag_parallax_deg: float = ranged(2.0, 0.01, 90.0)
    max_tag_skew: float = ranged(
        0.1, 0.001, 1.0
    )  # relative, between the sides and diagonals of one tag
    # measured distances, such as "image-000000 image-000041 3.20; lobby.jpg:312,200
    # lobby.jpg:400,210 1.85"
    distance: str = ""
    pick_radius_px: float = ranged(8.0, 0.5, 1000.0)  # from a click to the nearest known point
    # up
    max_tilt_deg: float = ranged(35.0, 1.0, 40.0)  # of planes, from what the images say is up
    plane_tolerance: float = ranged(0.01, 1e-5, 0.5)  # of the median depth of the points
    plane_agreement_deg: float = ranged(
        3.0, 0.1, 20.0
    )  # between a plane and the up that it supports
    min_plane_share: float = ranged(0.03, 0.001, 1.0)  # of the points, on one plane
    min_up_share: float = ranged(0.15, 0.001, 1.0)  # of the points, on all planes that agree on up


@dataclass(frozen=True)
class GaussianProcessConfig:
    """Depth completion by a Gaussian process (depth.gaussian_process). Lengths are those at which
    two pixels' log depths are correlated by 1/e beyond what the mean explains."""

    work_side_px: int = ranged(160, 16, 640)  # longer side of the image it works on
    samples: int = ranged(1300, 50, 4000)  # known pixels it learns from
    length: float = ranged(0.7, 0.01, 10.0)  # over the image, of its longer side
    mono_length: float = ranged(
        3.5, 0.01, 100.0
    )  # over monocular depth, of its standard deviation in the image
    color_length: float = ranged(
        2.5, 0.01, 100.0
    )  # over CIE L, 1 being black to white; half of it over a and b
    color_blur_px: float = ranged(
        2.0, 0.1, 50.0
    )  # working pixels (sigma): the colour of a surface, not of its pattern
    noise: float = ranged(0.005, 1e-6, 1.0)  # variance of a known value, of the variance of all
    mean_weight: float = ranged(
        1.0, 0.0, 100.0
    )  # variance of each coefficient of the quadratic mean
    reach_px: float = ranged(
        70.0, 0.1, 10_000.0
    )  # working pixels over which what is left of a known value fades
    edge_color: float = ranged(
        0.04, 1e-3, 10.0
    )  # difference of colour, 1 being black to white, that halves the spreading
    edge_log_depth: float = ranged(0.1, 1e-3, 10.0)  # the same of predicted log depth


@dataclass(frozen=True)
class DepthConfig:
    """Dense depth (depth)."""

    source: str = chosen(
        "auto", "sensor", "patchmatch", "completion", "none"
    )  # auto: the first that is possible
    max_side_px: int = ranged(320, 32, 2048)  # of the depth images written
    method: str = chosen(
        "gaussian_process", "hist_gradient_boosting", "scale_shift", "paper"
    )  # of completion
    preprocessing: str = chosen(
        "auto", "raw255", "imagenet"
    )  # of the monocular network (depth.monocular)
    min_known: int = ranged(30, 10, 100_000)  # pixels; frames with fewer are not completed
    held_out: float = ranged(
        0.2, 0.01, 0.9
    )  # of the sparse points of a frame, hidden to measure the error
    held_out_frames: int = ranged(10, 0, 10_000)  # spread over all, in which that is done
    max_point_error_px: float = ranged(
        2.0, 0.01, 100.0
    )  # mean reprojection error of the points it is made from or judged by
    max_depth_ratio: float = ranged(
        1.3, 1.0, 10.0
    )  # completed depths end this far beyond the farthest known one
    seed: int = ranged(0, 0, 2**31 - 1)
    gaussian_process: GaussianProcessConfig = field(default_factory=GaussianProcessConfig)


@dataclass(frozen=True)
class SplitConfig:
    """Training, validation and test frames (data.formats.splits)."""

    val: float = ranged(0.05, 0.0, 0.33)  # of all frames
    test: float = ranged(
        0.0, 0.0, 0.33
    )  # 0: a robot needs every image; test with a drive of its own
    chunk: int = ranged(10, 1, 100_000)  # frames in a row that are held out together, about
    min_sessions: int = ranged(3, 2, 1000)  # from which on whole sessions are held out for the test
    min_train: float = ranged(
        0.5, 0.1, 0.9
    )  # of all frames; sessions that would leave less for training are not held out
    covered: float = ranged(
        0.8, 0.0, 1.0
    )  # of a held-out session's frames: others see the place they see
    near: float = ranged(
        0.1, 0.0, 1.0
    )  # of the diameter of all camera positions: two frames see one place if they are no farther
    near_deg: float = ranged(45.0, 0.0, 180.0)  # apart, and their optical axes no more than this


@dataclass(frozen=True)
class MapConfig:
    """All that mapping a place depends on."""

    seed: int = ranged(0, 0, 2**31 - 1)
    bag: BagConfig = field(default_factory=BagConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    sfm: SfmConfig = field(default_factory=SfmConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
