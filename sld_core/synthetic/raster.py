"""A rasterizer for textured parallelograms: exact depth by plane equations, colour by perspective
warps.

With H = K [R edge_u, R edge_v, R origin + t] mapping (u, v, 1) to depth * (x, y, 1), the rows of G
= inv(H) are affine in the pixel: G (x, y, 1) = (u, v, 1) / depth. So inverse depth is a plane over
the image, and a pixel lies inside the parallelogram where 0 <= G0 <= G2 and 0 <= G1 <= G2: exact at
pixel centres and free of divisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sld_core.geometry import invert, transform
from sld_core.types import Camera

NEAR_M = 0.05
SUPERSAMPLING = 2  # samples per pixel along each axis; `Rasterizer._depth` is written for two
TILE_M = 1.0  # surfaces are cut into tiles of this size, each with its own texture resolution


@dataclass(frozen=True)
class Quad:
    """A textured parallelogram: `texture` (H, W, 3) uint8 RGB, its columns along `edge_u`, its rows
    along `edge_v` (metres, world), its top-left corner at `origin`. Seen from the side where u
    points right and v down."""

    origin: np.ndarray
    edge_u: np.ndarray
    edge_v: np.ndarray
    texture: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        """Unit vector towards the side it is seen from."""
        n = np.cross(self.edge_v, self.edge_u)
        return n / np.linalg.norm(n)

    @property
    def corners_43(self) -> np.ndarray:
        return self.at(np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]))

    def at(self, uv_N2: np.ndarray) -> np.ndarray:
        """World points (N, 3) of texture positions in 0..1."""
        return self.origin + uv_N2[:, :1] * self.edge_u + uv_N2[:, 1:] * self.edge_v

    def tiles(self, side_m: float) -> list[Quad]:
        """The same surface cut into parts of about `side_m`."""
        height, width = self.texture.shape[:2]
        columns = _cuts(self.edge_u, width, side_m)
        rows = _cuts(self.edge_v, height, side_m)
        return [
            Quad(
                self.at(np.array([[left / width, top / height]]))[0],
                self.edge_u * (right - left) / width,
                self.edge_v * (bottom - top) / height,
                self.texture[top:bottom, left:right],
            )
            for top, bottom in zip(rows, rows[1:])
            for left, right in zip(columns, columns[1:])
        ]

    def flipped(self) -> Quad:
        """Its other side."""
        return replace(self, origin=self.origin + self.edge_u, edge_u=-self.edge_u)


def _cuts(edge: np.ndarray, texels: int, side_m: float) -> np.ndarray:
    """Texels at which an edge is cut into parts of about `side_m`, both ends included."""
    parts = np.clip(round(np.linalg.norm(edge) / side_m), 1, texels)
    return np.linspace(0, texels, parts + 1).astype(int)


class Rasterizer:
    """Quads ready for rendering: cut into tiles, corners and normals stacked, textures with their
    mip levels."""

    def __init__(self, quads: Sequence[Quad]):
        tiles_of = [quad.tiles(TILE_M) for quad in quads]
        tiles = [tile for part in tiles_of for tile in part]
        self.surface_Q = np.repeat(np.arange(len(quads), dtype=np.int16), [*map(len, tiles_of)])
        self.corners_Q43 = np.stack([tile.corners_43 for tile in tiles])
        self.normal_Q3 = np.stack([tile.normal for tile in tiles])
        self.mipmaps = [_mipmap(tile.texture) for tile in tiles]

    def render(self, camera: Camera, T_world_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and depth (H, W) float32 metres, 0 where nothing is seen."""
        fine = camera.resized(SUPERSAMPLING * camera.width, SUPERSAMPLING * camera.height)
        index_HW, inverse_HW, projected = self._visible(fine, T_world_camera)
        image = np.zeros((fine.height, fine.width, 3), np.uint8)
        for i, (G, window) in projected.items():
            mask = (index_HW[window] == i).view(np.uint8)
            left, top, width, height = cv2.boundingRect(mask)
            if width:
                seen = slice(top, top + height), slice(left, left + width)
                corner = window[0].start + top, window[1].start + left
                patch = _warp(self.mipmaps[i], G, corner, (height, width))
                cv2.copyTo(patch, mask[seen], image[window][seen])
        size = camera.width, camera.height
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return image, self._depth(index_HW, inverse_HW)

    def _depth(self, index_HW: np.ndarray, inverse_HW: np.ndarray) -> np.ndarray:
        """Depth at pixel centres from the four samples around each. Inverse depth is affine on a
        surface, so their mean is exact; where they are on several surfaces, the nearest sample
        counts."""
        samples_4HW = _four_samples(inverse_HW)
        surface_4HW = _four_samples(self.surface_Q[index_HW])
        one = (surface_4HW == surface_4HW[0]).all(0)
        inverse = np.where(one, samples_4HW.mean(0), samples_4HW.max(0))
        return np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)

    def _visible(self, camera: Camera, T_world_camera: np.ndarray):
        """Per pixel the index of the nearest quad (-1: none) and its inverse depth; per quad in
        view its G and window."""
        index_HW = np.full((camera.height, camera.width), -1, np.int16)
        inverse_HW = np.zeros((camera.height, camera.width), np.float32)
        chosen_C, corners_C43 = self._candidates(camera, T_world_camera)
        origin_C3 = corners_C43[:, 0]
        edges_C3 = corners_C43[:, 1] - origin_C3, corners_C43[:, 3] - origin_C3
        G_C33 = np.linalg.inv(camera.K @ np.stack([*edges_C3, origin_C3], axis=2))
        projected = {}
        for i, corners_43, G in zip(chosen_C, corners_C43, G_C33):
            window = _window(camera, corners_43)
            if window is None:
                continue
            projected[i] = G, window
            u, v, inverse = _planes(G, window)
            nearer = (inverse > inverse_HW[window]) & (inverse < 1 / NEAR_M)
            if nearer.any():
                nearer &= (u >= 0) & (v >= 0) & (u <= inverse) & (v <= inverse)
                np.copyto(inverse_HW[window], inverse, where=nearer)
                np.copyto(index_HW[window], np.int16(i), where=nearer)
        return index_HW, inverse_HW, projected

    def _candidates(self, camera: Camera, T_world_camera: np.ndarray):
        """Quads that face the camera and are not wholly outside one side of its view, nearest
        first: indices (C,), and corners (C, 4, 3) in camera axes."""
        towards_Q3 = T_world_camera[:3, 3] - self.corners_Q43[:, 0]
        facing = np.flatnonzero((towards_Q3 * self.normal_Q3).sum(1) > 1e-3)
        corners_N3 = self.corners_Q43[facing].reshape(-1, 3)
        corners = transform(invert(T_world_camera), corners_N3).reshape(-1, 4, 3)
        x, y, z = np.moveaxis(corners, 2, 0)
        outside = [
            z < NEAR_M,
            camera.fx * x + camera.cx * z < 0,
            camera.fx * x + (camera.cx - camera.width) * z > 0,
            camera.fy * y + camera.cy * z < 0,
            camera.fy * y + (camera.cy - camera.height) * z > 0,
        ]
        inside = np.flatnonzero(~np.any([side.all(axis=1) for side in outside], axis=0))
        inside = inside[np.argsort(z[inside].min(axis=1))]
        return facing[inside], corners[inside]


def _four_samples(values_HW: np.ndarray) -> np.ndarray:
    """The four samples of every pixel: (4, H / 2, W / 2)."""
    return np.stack([values_HW[y::2, x::2] for y in (0, 1) for x in (0, 1)])


def _planes(G: np.ndarray, roi: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u / depth, v / depth and 1 / depth at the pixel centres of a window."""
    x = np.arange(roi[1].start, roi[1].stop) + 0.5
    y = np.arange(roi[0].start, roi[0].stop) + 0.5
    return tuple(
        (g[0] * x).astype(np.float32) + (g[1] * y + g[2]).astype(np.float32)[:, None] for g in G
    )


def _window(camera: Camera, corners_43: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns that a parallelogram (camera axes), cut at the near plane, can touch; None
    where it touches none."""
    corners = _clip_near(corners_43)
    if not len(corners):
        return None
    x = np.clip(camera.fx * corners[:, 0] / corners[:, 2] + camera.cx, 0, camera.width)
    y = np.clip(camera.fy * corners[:, 1] / corners[:, 2] + camera.cy, 0, camera.height)
    left, right = int(x.min()), int(np.ceil(x.max()))
    top, bottom = int(y.min()), int(np.ceil(y.max()))
    if right <= left or bottom <= top:
        return None
    return slice(top, bottom), slice(left, right)


def _clip_near(polygon_N3: np.ndarray) -> np.ndarray:
    """The part of a convex polygon with z >= NEAR_M."""
    if polygon_N3[:, 2].min() >= NEAR_M:
        return polygon_N3
    kept = []
    for a, b in zip(polygon_N3, np.roll(polygon_N3, -1, axis=0)):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
    return np.array(kept)


def _mipmap(texture: np.ndarray) -> list[np.ndarray]:
    """The texture and its halves down to a few texels."""
    levels = [np.ascontiguousarray(texture)]
    while min(levels[-1].shape[:2]) >= 8:
        height, width = levels[-1].shape[:2]
        half = (width + 1) // 2, (height + 1) // 2
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    return levels


def _warp(
    mipmap: list[np.ndarray], G: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The texture in the pixels of a window, from the level with about one texel per pixel."""
    (top, left), (height, width) = top_left, size
    rows, columns = mipmap[0].shape[:2]
    texels = rows * columns * _texture_area(G, left + width / 2, top + height / 2)
    level = int(np.clip(np.floor(np.log2(max(texels, 1e-6)) / 2 + 0.3), 0, len(mipmap) - 1))
    texture = mipmap[level]
    # OpenCV counts pixels and texels from the centre of the first one: shift both by a half
    to_texels = np.array([[texture.shape[1], 0, -0.5], [0, texture.shape[0], -0.5], [0, 0, 1]]) @ G
    to_texels = to_texels @ np.array([[1, 0, left + 0.5], [0, 1, top + 0.5], [0, 0, 1]])
    how = dict(flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return cv2.warpPerspective(texture, to_texels, size[::-1], **how)


def _texture_area(G: np.ndarray, x: float, y: float) -> float:
    """Fraction of the texture that a pixel at (x, y) covers: the Jacobian of (u, v) there."""
    u, v, w = G @ [x, y, 1]
    if w <= 0:
        return 1e-6
    J = (G[:2, :2] * w - np.outer([u, v], G[2, :2])) / w**2
    return abs(np.linalg.det(J))
