"""Light baked into the textures once: lamps with ray-traced soft shadows, fill light and constant
ambient light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sld_core.synthetic.raster import Quad

GRID_M = 0.12  # distance of the points on a surface where light is computed
AMBIENT = 0.4
SMALLEST_OCCLUDER_M2 = 0.02


@dataclass(frozen=True)
class Lamp:
    """A point light: `color` is the irradiance at a distance of one metre, perpendicular to the
    surface (1: the texture's own colours)."""

    position: np.ndarray
    color: np.ndarray


def bake(quads: Sequence[Quad], lamps: Sequence[Lamp]) -> list[Quad]:
    """The quads with their textures lit; each quad shadows all others."""
    areas = [np.linalg.norm(np.cross(q.edge_u, q.edge_v)) for q in quads]
    occluders = _Occluders([q for q, m2 in zip(quads, areas) if m2 > SMALLEST_OCCLUDER_M2])
    return [_lit(quad, lamps, occluders) for quad in quads]


def _lit(quad: Quad, lamps: Sequence[Lamp], occluders: _Occluders) -> Quad:
    columns = int(np.clip(np.linalg.norm(quad.edge_u) / GRID_M, 2, 60))
    rows = int(np.clip(np.linalg.norm(quad.edge_v) / GRID_M, 2, 60))
    u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    points_N3 = quad.at(np.stack([u.ravel(), v.ravel()], 1)) + 0.01 * quad.normal
    from_points_3NQ = occluders.coordinates(points_N3)
    light_N3 = np.full((len(points_N3), 3), AMBIENT)
    for lamp in lamps:
        ray_N3 = lamp.position - points_N3
        distance_N = np.linalg.norm(ray_N3, axis=1)
        cosine_N = np.maximum(ray_N3 @ quad.normal / distance_N, 0)
        if cosine_N.any():
            shadow_N = _blocked(from_points_3NQ, occluders.coordinates(lamp.position[None]))
            lit_N = np.where(shadow_N, 0, cosine_N) / np.maximum(distance_N, 0.3) ** 2
            light_N3 += lit_N[:, None] * lamp.color
    height, width = quad.texture.shape[:2]
    light = cv2.blur(light_N3.reshape(rows, columns, 3).astype(np.float32), (3, 3))
    light = cv2.resize(light, (width, height))
    return replace(quad, texture=np.clip(quad.texture * light, 0, 255).astype(np.uint8))


class _Occluders:
    """Parallelograms, each with its own coordinates: u and v within it (0..1), and the distance
    from its plane."""

    def __init__(self, quads: Sequence[Quad]):
        axes_Q33 = np.stack([np.stack([q.edge_u, q.edge_v, q.normal], 1) for q in quads])
        self.to_local_3Q3 = np.linalg.inv(axes_Q33).swapaxes(0, 1).astype(np.float32)
        origin_Q3 = np.stack([q.origin for q in quads])
        self.offset_3Q = np.einsum("kqj,qj->kq", self.to_local_3Q3, origin_Q3).astype(np.float32)

    def coordinates(self, points_N3: np.ndarray) -> np.ndarray:
        """(u, v, distance) of every point in every quad: (3, N, Q)."""
        local_3NQ = points_N3.astype(np.float32) @ self.to_local_3Q3.swapaxes(1, 2)
        return local_3NQ - self.offset_3Q[:, None]


def _blocked(start_3NQ: np.ndarray, end_31Q: np.ndarray) -> np.ndarray:
    """Whether each segment, given by the coordinates of its ends in every quad, cuts one of the
    quads."""
    (u0, v0, d0), (u1, v1, d1) = start_3NQ, end_31Q
    # only quads whose plane some segment crosses
    crossed = np.flatnonzero(((d0 > 0) != (d1 > 0)).any(axis=0))
    u0, v0, d0, u1, v1, d1 = (a[:, crossed] for a in (u0, v0, d0, u1, v1, d1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = d0 / (d0 - d1)
        u, v = u0 + t * (u1 - u0), v0 + t * (v1 - v0)
    return ((t > 1e-4) & (t < 0.999) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)).any(axis=1)
