"""The room as a camera sees it."""

from __future__ import annotations

import cv2
import numpy as np

from sld_core.synthetic.furnish import furnish
from sld_core.synthetic.light import bake
from sld_core.synthetic.raster import Quad, Rasterizer
from sld_core.types import Camera


class Room:
    """Textured surfaces with baked light, world z up, floor at z = 0, centred on the origin."""

    def __init__(self, quads: list[Quad]):
        self.rasterizer = Rasterizer(quads)

    @classmethod
    def make(cls, seed: int = 0) -> Room:
        """A furnished room of about 6 x 5 m; another seed makes another one."""
        return cls(bake(*furnish(np.random.default_rng(seed))))

    def render(
        self, camera: Camera, T_world_camera: np.ndarray, noise: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and depth (H, W) float32 metres at pixel centres, 0 where
        nothing is seen. With `noise` the image is like a real camera's: vignetting, a random
        exposure, sensor noise."""
        image, depth = self.rasterizer.render(camera, T_world_camera)
        if noise is not None:
            image = _sense(image, noise)
        return image, depth


def _sense(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gain = (rng.normal(1.0, 0.03) * (1 - 0.08 * (x**2 + y**2))).astype(np.float32)
    grain = np.empty(image.shape, np.int16)
    cv2.setRNGSeed(int(rng.integers(2**31)))
    cv2.randn(grain, 0, 2.5)
    return np.clip(image * gain[..., None] + grain, 0, 255).astype(np.uint8)
