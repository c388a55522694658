"""Scene + image -> Localization."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sld_core import geometry, heatmap, pnp, scene_file
from sld_core.camera.images import fit, rotate
from sld_core.models.backbone import Backbone
from sld_core.types import Camera, Detections, Localization, PoseEstimate, Scene, SldError

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
        self._local_L3 = scene.landmarks.xyz_L3 - scene.origin_3
        # a limit in metres says nothing of a scene in units of its own; the one relative to the
        # landmarks' distance stays
        self._pnp = (
            scene.config.pnp
            if scene.metric
            else replace(scene.config.pnp, max_position_sigma_m=np.inf)
        )

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Localizer:
        """From a .sld file; SldError in one line when it is damaged or belongs to another
        backbone."""
        return cls(scene_file.load(Path(path)), device)

    def localize(self, image_HW3: np.ndarray, camera: Camera) -> Localization:
        """The pose of `camera` in the scene's world (and its unit) from one undistorted uint8 RGB
        image, or the reason there is none.

        An image that tells nothing as it is, is turned by a few angles: the camera may have
        rolled."""
        clock = _Clock(self.device)
        image, small = fit(image_HW3, camera, self.scene.config.image.max_side_px)
        low_rad, high_rad = self.scene.rolls_rad
        margin_rad = np.radians(self.scene.config.decode.roll_margin_deg)
        for angle_rad in roll_attempts(low_rad - margin_rad, high_rad + margin_rad):
            detections, pose = self._attempt(image, angle_rad, small, clock)
            if isinstance(pose, PoseEstimate):
                pose.T_world_camera[:3, 3] += self.scene.origin_3
                return Localization(
                    pose, "", _at_full_size(detections, small, camera), clock.seconds
                )
        return Localization(None, pose, _at_full_size(detections, small, camera), clock.seconds)

    def _attempt(
        self, image_HW3: np.ndarray, angle_rad: float, camera: Camera, clock: _Clock
    ) -> tuple[Detections, PoseEstimate | str]:
        config, xyz_L3 = self.scene.config, self._local_L3
        turned, A = rotate(image_HW3, angle_rad)
        features_Chw = self.backbone.features(turned, self.device)
        clock.lap("backbone")
        maps = self.head(features_Chw)
        clock.lap("head")
        detections = _turned_back(heatmap.decode(maps, config.decode), A)
        clock.lap("decode")
        pose = pnp.estimate(detections, xyz_L3, camera, self._pnp)
        clock.lap("pnp")
        if isinstance(pose, PoseEstimate):
            # the guided pass: look again for every landmark near its projection, and fit the pose
            # to what is found
            xy_L2, _ = geometry.project(camera, geometry.invert(pose.T_world_camera), xyz_L3)
            xy_L2[~_inside(xy_L2, camera, config.decode.guided_margin_px)] = np.nan
            detections = _turned_back(
                heatmap.decode_near(maps, xy_L2 @ A[:, :2].T + A[:, 2], config.decode), A
            )
            pose = pnp.refine(pose.T_world_camera, detections, xyz_L3, camera, self._pnp)
            clock.lap("guided")
        return detections, pose


def check_device(device: str) -> None:
    """SldError unless torch can compute on `device`."""
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise SldError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise SldError(f"device {device}: torch finds no CUDA device; use cpu")
    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise SldError(
            f"device {device}: torch finds {torch.cuda.device_count()} CUDA devices, counted from 0"
        )


def roll_attempts(low_rad: float, high_rad: float) -> list[float]:
    """Angles to turn an image by so that one of them brings it near upright: 0 first, then
    outwards, within the range."""
    steps = range(
        int(np.floor(low_rad / ROLL_STEP_RAD + 0.5)),
        int(np.ceil(high_rad / ROLL_STEP_RAD - 0.5)) + 1,
    )
    return sorted({0.0, *(step * ROLL_STEP_RAD for step in steps)}, key=abs)


def _inside(xy_L2: np.ndarray, camera: Camera, margin_px: float) -> np.ndarray:
    """Which pixels (L,) lie in the image, `margin_px` from its border: closer to it, what is seen
    of a landmark and its surroundings is cut off on one side, which pulls detections inwards and
    the camera back."""
    with np.errstate(invalid="ignore"):
        return (
            (xy_L2 >= margin_px) & (xy_L2 <= np.array([camera.width, camera.height]) - margin_px)
        ).all(1)


def _turned_back(detections: Detections, A_23: np.ndarray) -> Detections:
    return replace(
        detections, xy_px_K2=(detections.xy_px_K2 - A_23[:, 2]) @ A_23[:, :2]
    )  # a rotation's inverse is its transpose


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


def _at_full_size(detections: Detections, small: Camera, camera: Camera) -> Detections:
    scale = np.array([camera.width / small.width, camera.height / small.height])
    return replace(
        detections,
        xy_px_K2=detections.xy_px_K2 * scale,
        sigma_px_K=detections.sigma_px_K * scale.mean(),
    )
