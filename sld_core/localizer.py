"""Scene + image -> Localization."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sld_core import fine_pass, geometry, heatmap, pnp, scene_file
from sld_core.camera.images import fit, rotate
from sld_core.config.scene import FineConfig, PnpConfig
from sld_core.fine_pass import FinePass, GreyImage
from sld_core.heatmap import ScoreMaps
from sld_core.models.backbone import Backbone
from sld_core.scene_file import Scene
from sld_core.types import Camera, Detections, Localization, PoseEstimate, Refused, SldError

ROLL_STEP_RAD = np.radians(35.0)  # heads are trained with turns of 15 degrees to either side


class Localizer:
    """A scene ready to answer: backbone and head in memory, on one device."""

    def __init__(self, scene: Scene, device: str = "cpu", backbone: Backbone | None = None):
        check_device(device)
        self.scene, self.device = scene, device
        self.backbone = (
            backbone or Backbone(scene.config.backbone, scene.config.backbone_weights)
        ).to(device)
        self.head = scene.head.to(device).eval()
        # near the landmarks, where single precision and pose solvers lose nothing
        self._local_L3 = scene.landmarks.xyz_L3 - scene.origin_3
        self._pnp, self._fine = scene.config.pnp, None
        if not scene.metric:  # a limit in metres means nothing; the relative one stays
            self._pnp = replace(self._pnp, max_position_sigma_m=np.inf)
        if scene.templates and scene.config.fine.use:
            self._fine = FinePass(scene.templates, self._local_L3, scene.config.fine, self._pnp)
            self._pnp = _lenient(self._pnp, scene.config.fine)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Localizer:
        """From a .sld file; SldError in one line when it is damaged or needs another backbone."""
        return cls(scene_file.load(Path(path)), device)

    def localize(
        self, image_HW3: np.ndarray, camera: Camera, fit_focal: bool = False
    ) -> Localization:
        """The pose of `camera` in the scene's world (and its unit) from one undistorted uint8 RGB
        image of the camera's size, or the reason there is none.

        With `fit_focal` the focal length of `camera` is a guess, right to about a third, and the
        pose says what it is. An image without an answer is tried again with weaker detections, then
        turned by a few angles: the camera may have rolled."""
        clock = _Clock(self.device)
        image, working = fit(image_HW3, camera, self.scene.config.image.max_side_px)
        levels = self._levels(image_HW3, camera)
        first = None
        for angle_rad in self._roll_attempts():
            view = self._view(image, working, levels, angle_rad, clock)
            for min_score in self._min_scores():
                detections, pose = self._attempt(view, min_score, fit_focal, clock)
                if isinstance(pose, PoseEstimate):
                    T = pose.T_world_camera
                    T = geometry.make_transform(T[:3, :3], T[:3, 3] + self.scene.origin_3)
                    pose = replace(pose, T_world_camera=T)
                    return answer(detections, pose, working, camera, clock.seconds)
                first = first or (detections, pose)  # its reason says most
        return answer(*first, working, camera, clock.seconds)

    def _levels(self, image_HW3: np.ndarray, camera: Camera) -> tuple[GreyImage, ...]:
        """The image as the fine pass sees it."""
        if not self._fine:
            return ()
        working_px = self.scene.config.image.max_side_px
        return fine_pass.levels(image_HW3, camera, working_px, self.scene.templates.zoom_S)

    def _min_scores(self) -> list[float]:
        """The scores from which on cells are taken for landmarks, one attempt after the other. Only
        the fine pass can tell a pose from the weaker ones from chance."""
        decode = self.scene.config.decode
        retries = decode.retries if self._fine else 0
        return [decode.min_score * decode.retry_factor**i for i in range(retries + 1)]

    def _attempt(
        self, view: _View, min_score: float, fit_focal: bool, clock: _Clock
    ) -> tuple[Detections, PoseEstimate | Refused]:
        """One pose after the other, each from the one before: of the best cells, of cells near its
        projections, of templates near those."""
        detections, pose = self._coarse_pose(view, min_score, fit_focal, clock)
        zoom = 1.0  # of the focal length that was given
        refinements = [self._guided_pose, self._fine_pose] if self._fine else [self._guided_pose]
        for next_pose in refinements:
            if isinstance(pose, Refused):
                break
            zoom *= pose.focal.factor if pose.focal else 1.0
            detections, pose = next_pose(view.zoomed(zoom), pose, fit_focal, clock)
        if isinstance(pose, PoseEstimate) and pose.focal:
            pose = replace(pose, focal=replace(pose.focal, factor=zoom * pose.focal.factor))
        return detections, pose

    def _roll_attempts(self) -> list[float]:
        low_rad, high_rad = self.scene.rolls_rad
        margin_rad = np.radians(self.scene.config.decode.roll_margin_deg)
        return roll_attempts(low_rad - margin_rad, high_rad + margin_rad)

    def _view(
        self,
        image_HW3: np.ndarray,
        camera: Camera,
        levels: tuple[GreyImage, ...],
        angle_rad: float,
        clock: _Clock,
    ) -> _View:
        turned, A_23 = rotate(image_HW3, angle_rad)
        features_Chw = self.backbone.features(turned, self.device)
        clock.lap("backbone")
        maps = self.head(features_Chw)
        clock.lap("head")
        return _View(camera, A_23, maps, levels)

    def _coarse_pose(
        self, view: _View, min_score: float, fit_focal: bool, clock: _Clock
    ) -> tuple[Detections, PoseEstimate | Refused]:
        """From the best cell of every landmark."""
        decode = replace(self.scene.config.decode, min_score=min_score)
        detections = view.upright(heatmap.decode(view.maps, decode))
        clock.lap("decode")
        pose = pnp.estimate(detections, self._local_L3, view.camera, self._pnp, fit_focal)
        clock.lap("pnp")
        return detections, pose

    def _guided_pose(
        self, view: _View, pose: PoseEstimate, fit_focal: bool, clock: _Clock
    ) -> tuple[Detections, PoseEstimate | Refused]:
        """From the best cell near each landmark's projection, however weak its score."""
        decode, T = self.scene.config.decode, pose.T_world_camera
        xy_L2, _ = geometry.project(view.camera, geometry.invert(T), self._local_L3)
        # closer to the border a landmark and its surroundings are cut off on one side, which pulls
        # detections inwards and the camera back
        xy_L2[~geometry.inside(view.camera, xy_L2, decode.guided_margin_px)] = np.nan
        detections = view.upright(heatmap.decode_near(view.maps, view.turned(xy_L2), decode))
        pose = pnp.refine(T, detections, self._local_L3, view.camera, self._pnp, fit_focal)
        clock.lap("guided")
        return detections, pose

    def _fine_pose(
        self, view: _View, pose: PoseEstimate, fit_focal: bool, clock: _Clock
    ) -> tuple[Detections, PoseEstimate | Refused]:
        """From the templates near each landmark's projection."""
        found = self._fine.refine(view.levels, view.camera, pose.T_world_camera, fit_focal)
        clock.lap("fine")
        return found


def _lenient(limits: PnpConfig, fine: FineConfig) -> PnpConfig:
    """Limits of a pose that the fine pass will judge."""
    return replace(
        limits,
        min_inliers=fine.min_inliers,
        min_inlier_ratio=0.0,
        max_position_sigma_m=np.inf,
        max_relative_sigma=np.inf,
        max_rotation_sigma_rad=np.inf,
    )


def answer(
    detections: Detections,
    pose: PoseEstimate | Refused,
    working: Camera,
    camera: Camera,
    seconds: dict[str, float],
) -> Localization:
    """What was found in an image scaled down to `working`, in pixels of the image of `camera`."""
    scale = np.array([camera.width / working.width, camera.height / working.height])
    detections = replace(detections.scaled(scale.mean()), xy_px_K2=detections.xy_px_K2 * scale)
    if isinstance(pose, Refused):
        return Localization(None, pose.reason, detections, seconds)
    pose = replace(pose, reprojection_px=float(pose.reprojection_px * scale.mean()))
    return Localization(pose, "", detections, seconds)


def check_device(device: str) -> None:
    """SldError unless torch can compute on `device`: cpu, cuda or cuda:N."""
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise SldError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise SldError(f"device {device}: torch finds no CUDA device; use cpu")
    count = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= count:
        raise SldError(f"device {device}: torch finds {count} CUDA devices, counted from 0")


def roll_attempts(low_rad: float, high_rad: float) -> list[float]:
    """Angles within the range, one of which brings the image near upright: 0 first, then
    outwards."""
    first = int(np.floor(low_rad / ROLL_STEP_RAD + 0.5))
    last = int(np.ceil(high_rad / ROLL_STEP_RAD - 0.5))
    return sorted({0.0, *(step * ROLL_STEP_RAD for step in range(first, last + 1))}, key=abs)


@dataclass(frozen=True)
class _View:
    """An image turned by one of the angles: the camera of the image before it was turned, A (2x3),
    which moves its pixels along, the score maps, and the levels of detail of the image before."""

    camera: Camera
    A_23: np.ndarray
    maps: ScoreMaps
    levels: tuple[GreyImage, ...]

    def zoomed(self, factor: float) -> _View:
        """The same view, taken to be of focal lengths `factor` times as long."""
        levels = tuple(level.zoomed(factor) for level in self.levels)
        return replace(self, camera=self.camera.zoomed(factor), levels=levels)

    def turned(self, xy_px_N2: np.ndarray) -> np.ndarray:
        return xy_px_N2 @ self.A_23[:, :2].T + self.A_23[:, 2]

    def upright(self, detections: Detections) -> Detections:
        """Detections of the turned image in the image before it was turned."""
        # the inverse of a rotation is its transpose
        xy_px_K2 = (detections.xy_px_K2 - self.A_23[:, 2]) @ self.A_23[:, :2]
        return replace(detections, xy_px_K2=xy_px_K2)


class _Clock:
    """Seconds between laps, summed by name. A GPU's are those until it has done its work."""

    def __init__(self, device: str):
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
