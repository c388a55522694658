"""Detections, landmarks and camera -> PoseEstimate with covariance, or Refused with the reason."""

from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.config.scene import PnpConfig
from sld_core.optional import poselib
from sld_core.types import Camera, Detections, FocalEstimate, PoseEstimate, Refused

NEGLIGIBLE_STEP = 0.03  # in standard deviations of the pose
DEGENERATE = Refused("the landmarks detected do not fix a pose (degenerate arrangement)")


def estimate(
    detections: Detections,
    xyz_L3: np.ndarray,
    camera: Camera,
    config: PnpConfig,
    fit_focal: bool = False,
) -> PoseEstimate | Refused:
    """The pose of `camera` by LO-RANSAC (poselib, best scores first) and `refine`."""
    needed = f"at least {config.min_inliers} needed"
    if len(detections) < config.min_inliers:
        return Refused(f"{len(detections)} landmarks detected, {needed}")
    pose, info = poselib.estimate_absolute_pose(
        detections.xy_px_K2,
        xyz_L3[detections.landmark_K],
        {
            "model": "PINHOLE",
            "width": camera.width,
            "height": camera.height,
            "params": [camera.fx, camera.fy, camera.cx, camera.cy],
        },
        {
            "max_reproj_error": config.ransac_px,
            "max_iterations": config.max_iterations,
            "min_iterations": 100,
            "progressive_sampling": True,
        },
        {"loss_type": "CAUCHY", "loss_scale": config.robust_px},
    )
    if info["num_inliers"] < config.min_inliers:
        return Refused(f"{info['num_inliers']} of {len(detections)} landmarks agree, {needed}")
    T_camera_world = np.vstack([pose.Rt, [0, 0, 0, 1]])
    T = geometry.invert(T_camera_world)
    return refine(T, detections, xyz_L3, camera, config, fit_focal)


def refine(
    T_world_camera: np.ndarray,
    detections: Detections,
    xyz_L3: np.ndarray,
    camera: Camera,
    config: PnpConfig,
    fit_focal: bool = False,
) -> PoseEstimate | Refused:
    """Iteratively reweighted Gauss-Newton from a nearby pose, each detection with its own
    covariance; with `fit_focal` over the focal length too.

    The covariance of the pose is (J' W J)^-1, scaled up where the residuals are larger than the
    detections' covariances promise."""
    xyz, information_K22 = xyz_L3[detections.landmark_K], detections.information_K22
    T, zoom, unknowns = T_world_camera, 1.0, 7 if fit_focal else 6
    for _ in range(10):
        residual_K2, J_K27, front = linearize(T, xyz, detections.xy_px_K2, camera.zoomed(zoom))
        J = J_K27[:, :, :unknowns]
        error2 = (residual_K2**2).sum(1)
        weight = front / (1 + error2 / config.robust_px**2)
        weight[error2 > config.ransac_px**2] = 0
        WJ = weight[:, None, None] * (information_K22 @ J)
        H = np.einsum("kai,kaj->ij", J, WJ)
        try:
            step = np.linalg.solve(H, -np.einsum("kai,ka->i", WJ, residual_K2))
        except np.linalg.LinAlgError:
            return DEGENERATE
        T = geometry.make_transform(
            geometry.rotation_from_vector(step[3:6]) @ T[:3, :3], T[:3, 3] + step[:3]
        )
        zoom *= float(np.exp(np.clip(step[6:], -0.5, 0.5).sum()))
        if step @ H @ step < NEGLIGIBLE_STEP**2:
            break
    return _assess(T, zoom, detections, xyz, camera, config, unknowns)


def linearize(
    T_world_camera: np.ndarray, xyz_K3: np.ndarray, xy_px_K2: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (K, 2) in pixels, Jacobians (K, 2, 7) by (position, rotation vector) in world axes
    and the logarithm of the focal length, and which points lie in front of the camera (K,).

    With v = X - c: moving the camera's centre c by d changes v by -d, turning R to exp(w) R does
    what changing v by v x w would do, and a . (v x w) = (a x v) . w."""
    R, v = T_world_camera[:3, :3], xyz_K3 - T_world_camera[:3, 3]
    x, y, z = (v @ R).T
    front = z > 1e-3
    z = np.where(front, z, 1.0)
    projected = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1)
    a_K23 = geometry.projection_jacobian(camera, T_world_camera, xyz_K3)
    from_centre_K21 = (projected - [camera.cx, camera.cy])[:, :, None]
    J_K27 = np.concatenate([-a_K23, np.cross(a_K23, v[:, None]), from_centre_K21], 2)
    return projected - xy_px_K2, J_K27, front


def _assess(
    T: np.ndarray,
    zoom: float,
    detections: Detections,
    xyz: np.ndarray,
    camera: Camera,
    config: PnpConfig,
    unknowns: int,
) -> PoseEstimate | Refused:
    """The pose with its covariance, unless too few landmarks agree or it is too uncertain."""
    residual_K2, J_K27, front = linearize(T, xyz, detections.xy_px_K2, camera.zoomed(zoom))
    error2 = (residual_K2**2).sum(1)
    inlier = front & (error2 < config.inlier_px**2)
    count = int(inlier.sum())
    agree = f"{count} of {len(detections)} landmarks agree"
    if count < config.min_inliers:
        return Refused(f"{agree}, at least {config.min_inliers} needed")
    if count < config.min_inlier_ratio * len(detections):
        return Refused(f"only {agree}, at least {config.min_inlier_ratio:.0%} needed")
    residual_K2, J = residual_K2[inlier], J_K27[inlier][:, :, :unknowns]
    information_K22 = detections.information_K22[inlier]
    H = np.einsum("kai,kaj->ij", J, information_K22 @ J)
    if np.linalg.cond(H) > 1e12:
        return DEGENERATE
    # errors are cut at inlier_px: the factor only widens the covariance, it never narrows it
    misfit = np.einsum("ka,kab,kb->", residual_K2, information_K22, residual_K2)
    factor = max(1.0, float(misfit / max(2 * count - unknowns, 1)))
    covariance = factor * np.linalg.inv(H)
    covariance = (covariance + covariance.T) / 2
    focal = FocalEstimate(zoom, float(np.sqrt(covariance[6, 6]))) if unknowns == 7 else None
    pose = PoseEstimate(
        T,
        covariance[:6, :6],
        inlier,
        float(np.sqrt(error2[inlier].mean())),
        focal=focal,
    )
    distance = float(np.median(np.linalg.norm(xyz[inlier] - T[:3, 3], axis=1)))
    return _refuse_uncertain(pose, distance, config) or pose


def _refuse_uncertain(pose: PoseEstimate, distance: float, config: PnpConfig) -> Refused | None:
    """`distance` is that of the landmarks, in the unit of the scene."""
    limit = min(config.max_position_sigma_m, config.max_relative_sigma * distance)
    sigma, sigma_rad = pose.position_sigma_m, pose.rotation_sigma_rad
    if sigma <= limit and sigma_rad <= config.max_rotation_sigma_rad:
        return None
    # a scene that is not metric has no limit in metres (localizer)
    unit = "m" if np.isfinite(config.max_position_sigma_m) else "units"
    return Refused(
        f"too uncertain: standard deviations {sigma:.3f} {unit}, {np.degrees(sigma_rad):.1f} deg; "
        f"landmarks {distance:.1f} {unit} away allow {limit:.3f} {unit}"
    )
