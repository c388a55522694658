"""Images as the networks see them: at working size, and rotated to stand upright."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sld_core import geometry
from sld_core.camera.images import load_upright
from sld_core.types import Frame


@dataclass(frozen=True)
class WorkingImages:
    """The images of `frames`, no side longer than `max_side_px`, each rotated by its angle."""

    frames: Sequence[Frame]
    angle_rad_F: np.ndarray
    max_side_px: int

    def load(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image i (uint8 RGB), and the 2x3 matrix from pixels of the frame to pixels of it."""
        return load_upright(self.frames[i], self.max_side_px, self.angle_rad_F[i])


def upright(frames: Sequence[Frame], max_side_px: int) -> WorkingImages:
    """Images rotated so that all stand upright."""
    return WorkingImages(frames, upright_angles(frames), max_side_px)


def unrotated(frames: Sequence[Frame], max_side_px: int) -> WorkingImages:
    """Images as the camera took them."""
    return WorkingImages(frames, np.zeros(len(frames)), max_side_px)


def upright_angles(frames: Sequence[Frame]) -> np.ndarray:
    """The rotation (radians) of each image that makes it upright; all zero where none is off by
    more than 10 degrees, as on a robot that does not roll."""
    T_F44 = np.stack([f.T_world_camera for f in frames])
    up = geometry.mean_up(T_F44)
    angle_F = np.array([geometry.upright_angle(T, up) for T in T_F44])
    return angle_F if np.degrees(np.abs(angle_F)).max() > 10 else np.zeros(len(frames))
