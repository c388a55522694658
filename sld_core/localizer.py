"""Scene + image -> Localization."""
from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sld_core import geometry, heatmap, pnp
from sld_core.images import fit
from sld_core.models.backbone import Backbone
from sld_core.types import Camera, Detections, Localization, PoseEstimate, Scene

log = logging.getLogger(__name__)


class Localizer:
    """A scene ready to answer: backbone and head in memory, on one device."""

    def __init__(self, scene: Scene, device: str = "cpu", backbone: Backbone | None = None):
        self.scene, self.device = scene, device
        self.backbone = (backbone or Backbone(scene.config.backbone)).to(device)
        self.head = scene.head.to(device).eval()

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Localizer:
        """From a .sld file; SldError in one line when it is damaged or belongs to another backbone."""
        from sld_core import scene_file
        return cls(scene_file.load(Path(path)), device)

    def localize(self, image_HW3: np.ndarray, camera: Camera) -> Localization:
        """The pose of `camera` in the scene's world from one undistorted uint8 RGB image, or the reason there is none."""
        clock = _Clock()
        config = self.scene.config
        image, small = fit(image_HW3, camera, config.image.max_side_px)
        features_Chw = self.backbone.features(image, self.device)
        clock.lap("backbone")
        maps = self.head(features_Chw)
        clock.lap("head")
        detections = heatmap.decode(maps, config.decode)
        clock.lap("decode")
        xyz_L3 = self.scene.landmarks.xyz_L3
        pose = pnp.estimate(detections, xyz_L3, small, config.pnp)
        clock.lap("pnp")
        if isinstance(pose, PoseEstimate):
            detections, pose = self._guided(maps, detections, pose, small)
            clock.lap("guided")
        detections = _at_full_size(detections, small, camera)
        if isinstance(pose, str):
            return Localization(None, pose, detections, clock.seconds)
        return Localization(pose, "", detections, clock.seconds)

    def _guided(self, maps, detections: Detections, pose: PoseEstimate, camera: Camera):
        """Look again for every landmark near its projection, and fit the pose to what is found."""
        config, xyz_L3 = self.scene.config, self.scene.landmarks.xyz_L3
        xy_L2, _ = geometry.project(camera, geometry.invert(pose.T_world_camera), xyz_L3)
        found = heatmap.decode_near(maps, xy_L2, config.decode)
        if len(found) < len(pose.inlier_K):
            pass
        refined = pnp.refine(pose.T_world_camera, found, xyz_L3, camera, config.pnp)
        return found, refined


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _at_full_size(detections: Detections, small: Camera, camera: Camera) -> Detections:
    scale = np.array([camera.width / small.width, camera.height / small.height])
    return replace(detections, xy_px_K2=detections.xy_px_K2 * scale, sigma_px_K=detections.sigma_px_K * scale.mean())
