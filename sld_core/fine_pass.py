"""The fine pass: where a pose says that landmarks are, they are looked for in the image itself.

The head works on cells of 8 pixels and places a landmark to about a third of one. Once the pose is
known to a few pixels, little is needed to do much better: a *template* of each landmark, a small
grey patch, the mean of its surroundings over the mapping frames. A template lies in the plane
through the landmark that faces the mapping cameras, and the image is sampled in that plane as the
pose says it is seen: near and far, upright and rolled views are all compared pixel by pixel.

Templates know nothing of the head. That makes them a second witness: landmarks that are found where
they should be seen speak for a pose, those that are not speak against it (`Agreement`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from sld_core import geometry, pnp
from sld_core.camera.images import fit
from sld_core.config.scene import FineConfig, PnpConfig
from sld_core.types import Agreement, Camera, Detections, PoseEstimate, Refused

WORTH_A_LEVEL = 1.25  # an image has a level of detail if it is at most this much smaller
MIN_DEVIATION = 0.5  # grey levels: a window with less shows nothing
MIN_DISTANCE = 0.02  # 1 - similarity; no two images of a place are more alike than this
BESIDE_PX = 24  # of the working image: near enough to look alike, too far for a template
WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1))
EDGE_ON = 0.1  # cosine of the angle at which the plane of a template is no longer seen
FLAT = 1e-4  # added to the products of a template's gradients: along an edge they are zero


@dataclass(frozen=True)
class GreyImage:
    """An image to look in, at one level of detail: `grey_HW` (float32, 0 to 255) and its camera."""

    grey_HW: np.ndarray
    camera: Camera

    @classmethod
    def of(cls, image_HW3: np.ndarray, camera: Camera) -> GreyImage:
        """Of a uint8 RGB image."""
        return cls(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY).astype(np.float32), camera)

    def zoomed(self, factor: float) -> GreyImage:
        """The same image, taken to be of focal lengths `factor` times as long."""
        return replace(self, camera=self.camera.zoomed(factor))


@dataclass(frozen=True)
class Templates:
    """What the fine pass knows of each landmark.

    `patch_SLPP` are grey values (int8, each patch in a unit of its own) at S levels of detail, from
    coarse to fine; level s has `zoom_S[s]` pixels where the working image has one. `axes_L32` are a
    pixel's step to the right and one down in the latter, in the unit of the scene. The rest says
    from where mapping cameras saw the landmark: the mean direction towards them (unit vector), the
    largest angle to it (radians), their distances, and their number; a landmark that none saw has
    no template. `covariance_L33` is that of its position."""

    patch_SLPP: np.ndarray
    zoom_S: np.ndarray
    axes_L32: np.ndarray
    direction_L3: np.ndarray
    angle_L: np.ndarray
    near_L: np.ndarray
    far_L: np.ndarray
    views_L: np.ndarray
    covariance_L33: np.ndarray


def levels(
    image_HW3: np.ndarray, camera: Camera, working_px: int, zoom_S: Sequence[float]
) -> tuple[GreyImage, ...]:
    """A uint8 RGB image at the levels of detail of templates, without those that it does not have.
    `working_px` is the longer side of the working image."""
    longer_px = max(camera.width, camera.height)
    sides_px = [round(float(zoom) * min(working_px, longer_px)) for zoom in zoom_S]
    return tuple(
        GreyImage.of(*fit(image_HW3, camera, side_px))
        for side_px in sides_px
        if side_px < WORTH_A_LEVEL * longer_px
    )


class FinePass:
    """Looks for the templates of the landmarks `xyz_L3`; `limits` are those of a pose."""

    def __init__(
        self, templates: Templates, xyz_L3: np.ndarray, config: FineConfig, limits: PnpConfig
    ):
        self.templates, self.xyz_L3, self.config = templates, xyz_L3, config
        self._limits = replace(
            limits,
            inlier_px=config.inlier_px,
            min_inliers=config.min_inliers,
            min_inlier_ratio=0.0,
        )
        patch_SLPP = normalised(templates.patch_SLPP.astype(np.float32))
        self._patch_SLPP = torch.from_numpy(patch_SLPP)
        self._spread_SL22 = _spread(patch_SLPP)

    def refine(
        self,
        images: Sequence[GreyImage],
        camera: Camera,
        T_world_camera: np.ndarray,
        fit_focal: bool = False,
    ) -> tuple[Detections, PoseEstimate | Refused]:
        """The pose (with `fit_focal` the focal length too) from templates near their projections,
        given one that is right to some pixels; Refused where too few of them agree with it.

        `images` are one image at the `levels` of the templates; pixels are those of `camera`, that
        of the working image."""
        T, zoom, detections, found_S = T_world_camera, 1.0, NOTHING, []
        for level, image in enumerate(images):
            found, looked_for = self._search(image.zoomed(zoom), T, level)
            found_S.append(found)
            scale = camera.width / image.camera.width
            detections = _preferred(found.scaled(scale), detections if level > 1 else NOTHING)
            limits = replace(self._limits, ransac_px=scale * self._radius_px(level))
            pose = pnp.refine(T, detections, self.xyz_L3, camera.zoomed(zoom), limits, fit_focal)
            if isinstance(pose, Refused):
                return detections, pose
            T = pose.T_world_camera
            if pose.focal:
                zoom *= pose.focal.factor
        if pose.focal:
            pose = replace(pose, focal=replace(pose.focal, factor=zoom))
        images = [image.zoomed(zoom) for image in images[:2]]
        found = self._agreeing([*zip(images, found_S)], T)
        pose = replace(pose, agreement=Agreement(looked_for, found))
        return detections, self._judged(pose, images)

    def _radius_px(self, level: int) -> int:
        return self.config.search_px if level else self.config.first_search_px

    def _agreeing(
        self, found: Sequence[tuple[GreyImage, Detections]], T_world_camera: np.ndarray
    ) -> int:
        """How many landmarks were found where a pose puts them in all of these images."""
        sets = []
        for image, detections in found:
            xyz_K3 = self.xyz_L3[detections.landmark_K]
            xy_K2, _ = geometry.project(image.camera, geometry.invert(T_world_camera), xyz_K3)
            off_K = np.linalg.norm(xy_K2 - detections.xy_px_K2, axis=1)
            sets.append(set(detections.landmark_K[off_K < self.config.agree_px].tolist()))
        return len(set.intersection(*sets))

    def _judged(self, pose: PoseEstimate, images: Sequence[GreyImage]) -> PoseEstimate | Refused:
        """The pose, unless chance might find as many landmarks where it puts them: as many as are
        found a little beside those places, where none of them is."""
        config, found, T = self.config, pose.agreement.found, pose.T_world_camera
        needed = float(config.min_found)
        if needed <= found < config.min_found + config.clear_share * pose.agreement.looked_for:
            chance = np.mean([self._found_beside(images, T, way) for way in WAYS])
            needed = max(needed, chance + config.min_score * np.sqrt(chance + 1))
        if found >= needed:
            return pose
        return Refused(
            f"{found} of {pose.agreement.looked_for} landmarks are where the pose puts them, at "
            f"least {np.ceil(needed):.0f} needed"
        )

    def _found_beside(
        self, images: Sequence[GreyImage], T_world_camera: np.ndarray, way: tuple[int, int]
    ) -> int:
        """How many landmarks seem to be where a pose puts them if the images are moved."""
        found = []
        for level, image in enumerate(images):
            by_2 = np.multiply(way, BESIDE_PX * self.templates.zoom_S[level])
            found.append((image, self._search(image, T_world_camera, level, by_2)[0]))
        return self._agreeing(found, T_world_camera)

    def expected(self, camera: Camera, T_world_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The landmarks (K,) that are worth looking for from a pose, and their projections (K, 2):
        those in the image that mapping saw from a similar direction and distance."""
        t, config = self.templates, self.config
        xy_L2, _ = geometry.project(camera, geometry.invert(T_world_camera), self.xyz_L3)
        towards_L3 = T_world_camera[:3, 3] - self.xyz_L3
        distance_L = np.linalg.norm(towards_L3, axis=1)
        cosine_L = np.einsum("li,li->l", towards_L3, t.direction_L3) / np.maximum(distance_L, 1e-9)
        angle_L = np.arccos(np.clip(cosine_L, -1, 1)) - t.angle_L
        landmark_K = np.flatnonzero(
            geometry.inside(camera, xy_L2, config.radius_px)
            & (t.views_L >= config.min_views)
            & (angle_L <= np.radians(config.beyond_deg))
            & (cosine_L > EDGE_ON)
            & (distance_L >= t.near_L / config.beyond_distance)
            & (distance_L <= t.far_L * config.beyond_distance)
        )[: config.max_landmarks]
        return landmark_K, xy_L2[landmark_K]

    def _search(
        self,
        image: GreyImage,
        T_world_camera: np.ndarray,
        level: int,
        moved_by_2: np.ndarray | float = 0.0,
    ) -> tuple[Detections, int]:
        """The templates found near their projections, and how many were looked for; as if the image
        were moved by some pixels."""
        config, t, camera = self.config, self.templates, image.camera
        landmark_K, xy_K2 = self.expected(camera, T_world_camera)
        if len(landmark_K) == 0:
            return NOTHING, 0
        J_K23 = geometry.projection_jacobian(camera, T_world_camera, self.xyz_L3[landmark_K])
        A_K22 = J_K23 @ (t.axes_L32[landmark_K] / t.zoom_S[level])
        side = self._patch_SLPP.shape[-1] + 2 * self._radius_px(level)
        windows_KNN = sample(image.grey_HW, xy_K2 - moved_by_2, A_K22, side)
        similarity_KMM = correlate(windows_KNN, self._patch_SLPP[level, landmark_K])
        offset_K2, peak_K, at_rim_K = peaks(similarity_KMM)
        noise_K = config.noise * np.maximum(1 - peak_K, MIN_DISTANCE)
        covariance_K22 = noise_K[:, None, None] * self._spread_SL22[level, landmark_K]
        covariance_K22 = covariance_K22 + config.floor_px**2 * np.eye(2)
        covariance_K22 = A_K22 @ covariance_K22 @ np.swapaxes(A_K22, 1, 2)
        covariance_K22 += J_K23 @ t.covariance_L33[landmark_K] @ np.swapaxes(J_K23, 1, 2)
        xy_K2 = xy_K2 + np.einsum("kij,kj->ki", A_K22, offset_K2)
        found = ~at_rim_K & (peak_K >= config.min_similarity)
        detections = Detections(
            landmark_K[found],
            xy_K2[found],
            peak_K[found],
            np.sqrt(np.einsum("kii->k", covariance_K22[found]) / 2),
            covariance_K22[found],
        )
        return detections, len(landmark_K)


NOTHING = Detections(
    np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros((0, 2, 2))
)


def sample(grey_HW: np.ndarray, xy_K2: np.ndarray, A_K22: np.ndarray, side: int) -> np.ndarray:
    """Square windows (K, side, side) of an image around `xy_K2` (corner origin), float32. A step to
    the right and a step down in window k are the columns of A_K22[k], in pixels of the image."""
    step = np.arange(side, dtype=np.float32) - (side - 1) / 2
    A, centre_K2 = A_K22.astype(np.float32)[..., None, None], (xy_K2 - 0.5).astype(np.float32)
    right, down = step, step[:, None]
    x_KNN, y_KNN = (
        centre_K2[:, i, None, None] + A[:, i, 0] * right + A[:, i, 1] * down for i in range(2)
    )
    flat = len(xy_K2), side * side  # cv2.remap wants two dimensions
    values = cv2.remap(
        grey_HW,
        x_KNN.reshape(flat),
        y_KNN.reshape(flat),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return values.reshape(-1, side, side)


def normalised(patch_NPP: np.ndarray) -> np.ndarray:
    """Patches of mean 0 and norm 1; flat ones stay 0."""
    patch = patch_NPP - patch_NPP.mean((-2, -1), keepdims=True)
    norm = np.linalg.norm(patch, axis=(-2, -1), keepdims=True)
    return patch / np.maximum(norm, MIN_DEVIATION * patch.shape[-1])


def correlate(windows_KNN: np.ndarray, patch_KPP: torch.Tensor) -> np.ndarray:
    """Normalised correlation (K, M, M) of each patch with its window at every offset; M = N - P +
    1. Patches are `normalised`."""
    count, size, _ = windows_KNN.shape
    side = patch_KPP.shape[-1]
    windows = windows_KNN - windows_KNN.mean((1, 2), keepdims=True)  # saves the variance's digits
    product = F.conv2d(torch.from_numpy(windows)[None], patch_KPP[:, None], groups=count)[0]
    # the windows one below the other; what a box takes from its window's neighbour is cut off
    column, box, inner = windows.reshape(-1, size), (side, side), slice(side // 2, -(side // 2))
    mean, mean_square = (
        box_filter(column, cv2.CV_32F, box).reshape(windows.shape)[:, inner, inner]
        for box_filter in (cv2.boxFilter, cv2.sqrBoxFilter)
    )
    deviation = np.sqrt(np.maximum(mean_square - mean**2, MIN_DEVIATION**2))
    return product.numpy() / (deviation * side)


def peaks(similarity_KMM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The highest point of each map: its offset (K, 2) from the middle, (x, y), to a fraction of a
    step by a parabola through its neighbours; its height (K,); and which lie at the rim (K,)."""
    count, side, _ = similarity_KMM.shape
    k = np.arange(count)
    row, column = np.divmod(similarity_KMM.reshape(count, -1).argmax(1), side)
    at_rim = (row % (side - 1) == 0) | (column % (side - 1) == 0)
    row, column = np.clip(row, 1, side - 2), np.clip(column, 1, side - 2)

    def at(down: int, right: int) -> np.ndarray:
        return similarity_KMM[k, row + down, column + right].astype(float)

    peak = at(0, 0)
    gx, gy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    hxx, hyy = at(0, 1) - 2 * peak + at(0, -1), at(1, 0) - 2 * peak + at(-1, 0)
    hxy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = hxx * hyy - hxy**2
    round_K = (determinant > 1e-6) & (hxx < 0)
    divisor = np.where(round_K, determinant, 1.0)
    dx = np.where(round_K, (hxy * gy - hyy * gx) / divisor, 0.0).clip(-1, 1)
    dy = np.where(round_K, (hxy * gx - hxx * gy) / divisor, 0.0).clip(-1, 1)
    middle = side // 2
    return np.stack([column - middle + dx, row - middle + dy], 1), peak, at_rim


def _preferred(finer: Detections, coarser: Detections) -> Detections:
    """The finer detections, and the coarser ones of the landmarks that are not among them."""
    rest = ~np.isin(coarser.landmark_K, finer.landmark_K)
    return Detections(
        *(
            np.concatenate([getattr(finer, f.name), getattr(coarser, f.name)[rest]])
            for f in fields(Detections)
        )
    )


def _spread(patch_SLPP: np.ndarray) -> np.ndarray:
    """How far noise of variance 1 in each pixel moves the best fit of a template (..., 2, 2): wide
    along an edge, narrow at a corner."""
    down, right = np.gradient(patch_SLPP.astype(float), axis=(-2, -1))
    g = np.stack([right, down], -1).reshape(*patch_SLPP.shape[:2], -1, 2)
    return np.linalg.inv(np.swapaxes(g, -1, -2) @ g + FLAT * np.eye(2)) / g.shape[-2]
