"""The nouns of sld: frozen dataclasses over numpy. (A `Scene` holds a network: scene_file.)"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


class SldError(ValueError):
    """Input that cannot be used. The text says in one line what came, what was expected and what to
    do."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion; sizes, focal lengths and principal point in pixels.

    Pixel (0, 0) is the top-left corner of the image, so the centre of the first pixel is at
    (0.5, 0.5). ROS and OpenCV put it at (0, 0): see `from_opencv`. SldError where a value is
    impossible."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self):
        for side in (self.width, self.height):
            if not isinstance(side, int) or not 0 < side <= 16384:
                size = f"{self.width}x{self.height}"
                raise SldError(f"camera image size {size}: expected 1 to 16384 pixels a side")
        values = np.array([self.fx, self.fy, self.cx, self.cy])
        if not np.isfinite(values).all() or self.fx <= 0 or self.fy <= 0:
            raise SldError(
                f"camera intrinsics fx, fy, cx, cy = {values.tolist()}: expected finite numbers, "
                "fx and fy > 0; is the camera calibrated?"
            )

    @classmethod
    def from_opencv(cls, width: int, height: int, K: np.ndarray) -> Camera:
        """From a 3x3 matrix in the OpenCV and ROS convention (pixel centres at integers)."""
        K = np.asarray(K, float).reshape(3, 3)
        return cls(int(width), int(height), K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5)

    @property
    def K(self) -> np.ndarray:
        """3x3 matrix for corner-origin pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same image resampled to width x height."""
        sx, sy = width / self.width, height / self.height
        return Camera(width, height, self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy)

    def zoomed(self, factor: float) -> Camera:
        """The same camera with focal lengths `factor` times as long."""
        return replace(self, fx=self.fx * factor, fy=self.fy * factor)


@dataclass(frozen=True)
class Frame:
    """One image of a mapping session, on disk. `T_world_camera` is 4x4, camera optical frame to
    world, metres; None where it is not known."""

    name: str
    image_path: Path
    camera: Camera
    T_world_camera: np.ndarray | None = None
    # 16-bit PNG, millimetres, registered to the image, any resolution
    depth_path: Path | None = None
    stamp_ns: int = 0
    session: str = ""
    # where it came from, in the user's words: a path, "lobby.mp4 at 12.25 s", a topic
    source: str = ""


@dataclass(frozen=True)
class FrameSet:
    """Images of one or several drives, the input of mapping.

    Where `intrinsics_known`, images are undistorted and every camera is right; otherwise every
    camera is a guess, and all frames of one session and size share one lens. Poses, where frames
    have them, come from odometry, TF or the user and are in `world_frame` (empty: none), with z up
    if `world_z_up`. `rejected` gives the reason for every source that was left out."""

    frames: tuple[Frame, ...]
    intrinsics_known: bool
    world_frame: str = ""
    world_z_up: bool = False
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """Frames with poses and the 3D points triangulated from their feature tracks.

    `points_N3` are in the world, metres; `error_px_N` is the mean reprojection error. Observations
    are flat arrays sorted by point: indices `obs_point_M` and `obs_frame_M`, pixels `obs_xy_M2`
    (corner origin)."""

    frames: tuple[Frame, ...]
    points_N3: np.ndarray
    error_px_N: np.ndarray
    obs_point_M: np.ndarray
    obs_frame_M: np.ndarray
    obs_xy_M2: np.ndarray


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of a scene in order of choice: the first n are the best set of n.

    `xyz_L3` is in the world, metres; `point_L` is the index of the reconstruction point that each
    came from."""

    xyz_L3: np.ndarray
    point_L: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz_L3)


class Visibility(enum.IntEnum):
    """Whether a landmark is seen in a frame. UNKNOWN is left out of the loss."""

    HIDDEN = 0
    VISIBLE = 1
    UNKNOWN = 2


@dataclass(frozen=True)
class Labels:
    """Per frame and landmark: `visibility_FL` (uint8 of Visibility) and the projection `xy_FL2`
    (pixels, corner origin; NaN where the landmark is behind the camera)."""

    visibility_FL: np.ndarray
    xy_FL2: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Landmarks found in one image: indices `landmark_K`, positions `xy_px_K2` (corner origin),
    `score_K` in 0..1, and `sigma_px_K`, the standard deviation of each coordinate; where it is not
    the same in all directions, `covariance_K22` (px squared) says so."""

    landmark_K: np.ndarray
    xy_px_K2: np.ndarray
    score_K: np.ndarray
    sigma_px_K: np.ndarray
    covariance_K22: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.landmark_K)

    @property
    def information_K22(self) -> np.ndarray:
        """The inverse of each position's covariance (K, 2, 2), 1 / px squared."""
        if self.covariance_K22 is not None:
            return np.linalg.inv(self.covariance_K22)
        return np.eye(2) / self.sigma_px_K[:, None, None] ** 2

    def scaled(self, factor: float) -> Detections:
        """The same detections in pixels of an image `factor` times as large."""
        covariance = self.covariance_K22
        return replace(
            self,
            xy_px_K2=self.xy_px_K2 * factor,
            sigma_px_K=self.sigma_px_K * factor,
            covariance_K22=None if covariance is None else covariance * factor**2,
        )


@dataclass(frozen=True)
class Agreement:
    """What the fine pass says of a pose: how many landmarks it looked for where the pose puts them,
    and how many it found there."""

    looked_for: int
    found: int

    @property
    def share(self) -> float:
        """Found, of those looked for; 0 where none was."""
        return self.found / max(self.looked_for, 1)


@dataclass(frozen=True)
class FocalEstimate:
    """The focal length that an image shows: `factor` times that of the camera given, with relative
    standard deviation `sigma`."""

    factor: float
    sigma: float


@dataclass(frozen=True)
class PoseEstimate:
    """A camera pose with its uncertainty.

    `T_world_camera` is 4x4, metres. `covariance_66` is that of (x, y, z, rotation about x, y, z) in
    world axes (metres, radians), as in geometry_msgs/PoseWithCovariance: R_true = exp(w) R.
    `inlier_K` marks the detections used; `reprojection_px` is their root mean square error.
    `agreement` is the fine pass's, None without one; `focal` is None where it was not asked
    for."""

    T_world_camera: np.ndarray
    covariance_66: np.ndarray
    inlier_K: np.ndarray
    reprojection_px: float
    agreement: Agreement | None = None
    focal: FocalEstimate | None = None

    @property
    def position_sigma_m(self) -> float:
        """Standard deviation of the position along its least certain direction."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance_66[:3, :3])[-1]))

    @property
    def rotation_sigma_rad(self) -> float:
        """Standard deviation of the rotation about its least certain axis."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance_66[3:, 3:])[-1]))


@dataclass(frozen=True)
class Refused:
    """No answer, and why."""

    reason: str


@dataclass(frozen=True)
class Localization:
    """The answer to one image: a pose, or the reason there is none. `seconds` is the time of each
    step. Pixels are those of the image as it was given."""

    pose: PoseEstimate | None
    reason: str
    detections: Detections
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.pose is not None


@dataclass(frozen=True)
class Progress:
    """How far a long job has come: `stage` in words, `fraction` of that stage in 0..1, the current
    loss, and the seconds left of the whole job where known."""

    stage: str
    fraction: float
    loss: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class SceneReport:
    """What teaching a scene did: seconds per stage, counts, training curve, and the accuracy on
    held-out frames."""

    seconds: dict[str, float]
    counts: dict[str, int]
    loss_curve: list[tuple[int, float]]
    validation: dict[str, float | int]
    notes: list[str] = field(default_factory=list)

    @property
    def teach_s(self) -> float:
        return float(sum(self.seconds.values()))


@dataclass(frozen=True)
class SceneData:
    """A labelled dataset: what `sld map` makes and a scene is taught from.

    All `frames` have poses in `world_frame`, in metres where `metric`, else in a unit of their own.
    `split_F` is "train", "val" or "test". `visibility_FL` is uint8 of Visibility.
    `landmarks.point_L` are ids."""

    frames: tuple[Frame, ...]
    split_F: tuple[str, ...]
    landmarks: Landmarks
    visibility_FL: np.ndarray
    metric: bool
    world_frame: str = ""
