"""Labelled frames -> the templates of the fine pass: what each landmark looks like, and from where
it was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sld_core import fine_pass, geometry
from sld_core.camera.images import fit, read_image
from sld_core.config.scene import FineConfig, SceneConfig
from sld_core.fine_pass import WORTH_A_LEVEL, FinePass, Templates, levels
from sld_core.spread import spread
from sld_core.training.training_set import TrainingSet
from sld_core.types import Camera, Detections, Frame, PoseEstimate, Progress, Visibility

CALIBRATION_FRAMES = 20


def learn(
    training_set: TrainingSet, config: SceneConfig, progress: Callable[[Progress], None]
) -> Templates:
    """The mean patch of each landmark over the frames that show it."""
    frames, xyz_L3 = training_set.frames, training_set.landmarks.xyz_L3
    working_px = config.image.max_side_px
    zoom_S = _zooms(frames, working_px, config.fine.max_side_px)
    views = _Views(training_set, working_px, config.fine.radius_px)
    axes_L32, side = views.facing_axes(), 2 * config.fine.radius_px + 1
    sum_SLPP = np.zeros((len(zoom_S), len(xyz_L3), side, side), np.float32)
    for i, frame in enumerate(frames):
        image_HW3, landmark_K = read_image(frame.image_path), views.landmark_M[views.frame_M == i]
        xyz_K3, T = xyz_L3[landmark_K], frame.T_world_camera
        for level, image in enumerate(levels(image_HW3, frame.camera, working_px, zoom_S)):
            xy_K2, _ = geometry.project(image.camera, geometry.invert(T), xyz_K3)
            J_K23 = geometry.projection_jacobian(image.camera, T, xyz_K3)
            A_K22 = J_K23 @ (axes_L32[landmark_K] / zoom_S[level])
            windows_KPP = fine_pass.sample(image.grey_HW, xy_K2, A_K22, side)
            sum_SLPP[level, landmark_K] += fine_pass.normalised(windows_KPP)
        progress(Progress("learning templates", (i + 1) / len(frames)))
    largest = np.abs(sum_SLPP).max((-2, -1), keepdims=True)
    patch_SLPP = np.round(127 * sum_SLPP / np.maximum(largest, 1e-9)).astype(np.int8)
    covariance_L33 = views.covariance(config.fine.landmark_sigma_px)
    return Templates(patch_SLPP, zoom_S, axes_L32, *views.summary(), covariance_L33)


def calibrated(templates: Templates, training_set: TrainingSet, config: SceneConfig) -> FineConfig:
    """The settings of the fine pass with its noise and its floor scaled by one factor, so that
    detections in held-out frames (or in training frames, where none are held out) are as far from
    where the pose that they give puts them as their covariance says."""
    frames = training_set.validation or training_set.frames
    xyz_L3 = training_set.landmarks.xyz_L3
    unjudged = replace(config.fine, min_found=0, clear_share=0.0)
    fine = FinePass(templates, xyz_L3, unjudged, config.pnp)
    misfits = []
    for frame in spread(frames, CALIBRATION_FRAMES):
        image_HW3, camera = fit(
            read_image(frame.image_path), frame.camera, config.image.max_side_px
        )
        images = levels(image_HW3, camera, config.image.max_side_px, templates.zoom_S)
        detections, pose = fine.refine(images, camera, frame.T_world_camera)
        if isinstance(pose, PoseEstimate):
            misfits.append(_misfit(detections, pose, camera, xyz_L3))
    if not misfits:
        return config.fine
    variance = float(np.clip(np.mean(np.concatenate(misfits)) / 2, 0.05, 50.0))
    noise, floor_px = config.fine.noise * variance, config.fine.floor_px * np.sqrt(variance)
    return replace(config.fine, noise=noise, floor_px=float(floor_px))


def _misfit(
    detections: Detections, pose: PoseEstimate, camera: Camera, xyz_L3: np.ndarray
) -> np.ndarray:
    """Squared distances of the detections used from where the pose puts them, in units of their
    covariance: 2 on average where that is true."""
    xyz_K3 = xyz_L3[detections.landmark_K]
    xy_K2, _ = geometry.project(camera, geometry.invert(pose.T_world_camera), xyz_K3)
    off_K2 = (xy_K2 - detections.xy_px_K2)[pose.inlier_K]
    information_K22 = detections.information_K22[pose.inlier_K]
    return np.einsum("ka,kab,kb->k", off_K2, information_K22, off_K2)


class _Views:
    """Which frame shows which landmark, one view after another (M), in order of frames, with the
    direction towards the camera `towards_M3` (unit vector) and its distance."""

    def __init__(self, training_set: TrainingSet, working_px: int, margin_px: int):
        frames, labels = training_set.frames, training_set.labels
        xyz_L3 = training_set.landmarks.xyz_L3
        size_F2 = np.array([(f.camera.width, f.camera.height) for f in frames])
        margin_F = margin_px * np.maximum(size_F2.max(1) / working_px, 1)
        with np.errstate(invalid="ignore"):
            inside_FL = (
                (labels.xy_FL2 >= margin_F[:, None, None])
                & (labels.xy_FL2 <= (size_F2 - margin_F[:, None])[:, None])
            ).all(2)
        shown_FL = (labels.visibility_FL == Visibility.VISIBLE) & inside_FL
        self.frame_M, self.landmark_M = np.nonzero(shown_FL)
        self.landmarks = len(xyz_L3)
        self.views_L = np.bincount(self.landmark_M, minlength=self.landmarks)
        T_F44 = np.stack([f.T_world_camera for f in frames])
        self.up_3 = geometry.mean_up(T_F44)
        towards_M3 = T_F44[self.frame_M, :3, 3] - xyz_L3[self.landmark_M]
        self.distance_M = np.linalg.norm(towards_M3, axis=1)
        self.towards_M3 = towards_M3 / self.distance_M[:, None]
        focal_F = np.array([f.camera.fx for f in frames]) * np.minimum(
            working_px / size_F2.max(1), 1
        )
        self.focal_M = focal_F[self.frame_M]
        mean_L3 = np.stack([self._sum(axis_M) for axis_M in self.towards_M3.T], 1)
        length_L = np.linalg.norm(mean_L3, axis=1, keepdims=True)
        self.direction_L3 = mean_L3 / np.maximum(length_L, 1e-9)

    def _sum(self, value_M: np.ndarray) -> np.ndarray:
        return np.bincount(self.landmark_M, value_M, self.landmarks)

    def facing_axes(self) -> np.ndarray:
        """A step to the right and a step down (L, 3, 2) in the plane that faces the mean direction,
        as long as one pixel of the working image is there in the (geometric) mean view."""
        log_L = self._sum(np.log(self.distance_M / self.focal_M)) / np.maximum(self.views_L, 1)
        pixel_L = np.exp(log_L)
        right_L3 = np.cross(self.up_3, self.direction_L3)
        # of a floor or a ceiling, seen from straight above or below, any direction will do
        level = np.linalg.norm(right_L3, axis=1) < 0.1
        right_L3[level] = np.cross(_across(self.up_3), self.direction_L3[level])
        right_L3 /= np.maximum(np.linalg.norm(right_L3, axis=1, keepdims=True), 1e-9)
        down_L3 = np.cross(right_L3, self.direction_L3)
        return np.stack([right_L3, down_L3], 2) * pixel_L[:, None, None]

    def covariance(self, sigma_px: float) -> np.ndarray:
        """That of each landmark's position (L, 3, 3), of views that are off by `sigma_px` an axis:
        how far it may be off along the rays of views from nearly one direction."""
        across_M33 = np.eye(3) - self.towards_M3[:, :, None] * self.towards_M3[:, None]
        across_M33 *= ((self.focal_M / self.distance_M) ** 2)[:, None, None]
        information_L33 = np.zeros((self.landmarks, 3, 3))
        np.add.at(information_L33, self.landmark_M, across_M33)
        # a landmark seen along one ray only is within its distance
        typical = np.median(self.focal_M / self.distance_M) ** 2
        information_L33 += 1e-4 * typical * np.eye(3)
        return sigma_px**2 * np.linalg.inv(information_L33)

    def summary(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """direction_L3, angle_L, near_L, far_L and views_L of `Templates`."""
        cosine_M = np.einsum("mi,mi->m", self.towards_M3, self.direction_L3[self.landmark_M])
        angle_L, far_L = np.zeros(self.landmarks), np.zeros(self.landmarks)
        near_L = np.full(self.landmarks, np.inf)
        np.maximum.at(angle_L, self.landmark_M, np.arccos(np.clip(cosine_M, -1, 1)))
        np.maximum.at(far_L, self.landmark_M, self.distance_M)
        np.minimum.at(near_L, self.landmark_M, self.distance_M)
        near_L[self.views_L == 0] = 0.0
        return self.direction_L3, angle_L, near_L, far_L, np.minimum(self.views_L, 255)


def _across(up_3: np.ndarray) -> np.ndarray:
    """A unit vector at a right angle to `up_3`."""
    axis = np.eye(3)[np.abs(up_3).argmin()]
    across = np.cross(up_3, axis)
    return across / np.linalg.norm(across)


def _zooms(frames: Sequence[Frame], working_px: int, max_side_px: int) -> np.ndarray:
    """The levels of detail: half of the working image's, its own, and where the frames show more,
    theirs."""
    camera = Counter(f.camera for f in frames).most_common(1)[0][0]
    longer_px = max(camera.width, camera.height)
    finest = min(longer_px, max_side_px) / min(longer_px, working_px)
    return np.array([0.5, 1.0, finest] if finest >= WORTH_A_LEVEL else [0.5, 1.0])
