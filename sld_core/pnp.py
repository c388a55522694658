"""Detections, landmarks and camera -> PoseEstimate with covariance, or Refused with the reason."""

from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.config.scene import PnpConfig
from sld_core.optional import poselib
from sld_core.types import Camera, Detections, PoseEstimate, Refused

DEGENERATE = Refused("the landmarks detected do not fix a pose (degenerate arrangement)")


def estimate(
    detections: Detections, xyz_L3: np.ndarray, camera: Camera, config: PnpConfig
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
    return refine(geometry.invert(T_camera_world), detections, xyz_L3, camera, config)


def refine(
    T_world_camera: np.ndarray,
    detections: Detections,
    xyz_L3: np.ndarray,
    camera: Camera,
    config: PnpConfig,
) -> PoseEstimate | Refused:
    """Iteratively reweighted Gauss-Newton from a nearby pose, each detection with its own sigma.

    The covariance is (J' W J)^-1, scaled up where the residuals are larger than the sigmas
    promise."""
    xyz, sigma = xyz_L3[detections.landmark_K], detections.sigma_px_K
    T = T_world_camera
    for _ in range(10):
        residual_K2, J_K26, front = linearize(T, xyz, detections.xy_px_K2, camera)
        error2 = (residual_K2**2).sum(1)
        weight = front / (sigma**2 * (1 + error2 / config.robust_px**2))
        weight[error2 > config.ransac_px**2] = 0
        H = np.einsum("k,kai,kaj->ij", weight, J_K26, J_K26)
        try:
            step = np.linalg.solve(H, -np.einsum("k,kai,ka->i", weight, J_K26, residual_K2))
        except np.linalg.LinAlgError:
            return DEGENERATE
        T = geometry.make_transform(
            geometry.rotation_from_vector(step[3:]) @ T[:3, :3], T[:3, 3] + step[:3]
        )
        if np.abs(step).max() < 1e-7:
            break
    return _assess(T, detections, xyz, camera, config)


def linearize(
    T_world_camera: np.ndarray, xyz_K3: np.ndarray, xy_px_K2: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (K, 2) in pixels, Jacobians (K, 2, 6) by (position, rotation vector) in world axes,
    and which points lie in front of the camera (K,).

    With v = X - c and x = R'v: moving c by d changes x by -R'd, turning R to exp(w) R changes it by
    R'(v x w)."""
    R, v = T_world_camera[:3, :3], xyz_K3 - T_world_camera[:3, 3]
    x, y, z = (v @ R).T
    front = z > 1e-3
    z = np.where(front, z, 1.0)
    projected = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1)
    zero = np.zeros_like(z)
    D_K23 = np.stack(
        [
            np.stack([camera.fx / z, zero, -camera.fx * x / z**2], 1),
            np.stack([zero, camera.fy / z, -camera.fy * y / z**2], 1),
        ],
        1,
    )
    cross = np.stack(  # [v]x, with v x w = [v]x w
        [
            np.stack([zero, -v[:, 2], v[:, 1]], 1),
            np.stack([v[:, 2], zero, -v[:, 0]], 1),
            np.stack([-v[:, 1], v[:, 0], zero], 1),
        ],
        1,
    )
    J_world = np.concatenate([np.broadcast_to(-np.eye(3), cross.shape), cross], 2)
    return projected - xy_px_K2, D_K23 @ (R.T @ J_world), front


def _assess(
    T: np.ndarray, detections: Detections, xyz: np.ndarray, camera: Camera, config: PnpConfig
) -> PoseEstimate | Refused:
    """The pose with its covariance, unless too few landmarks agree or it is too uncertain."""
    residual_K2, J_K26, front = linearize(T, xyz, detections.xy_px_K2, camera)
    error2 = (residual_K2**2).sum(1)
    inlier = front & (error2 < config.inlier_px**2)
    count = int(inlier.sum())
    agree = f"{count} of {len(detections)} landmarks agree"
    if count < config.min_inliers:
        return Refused(f"{agree}, at least {config.min_inliers} needed")
    if count < config.min_inlier_ratio * len(detections):
        return Refused(f"only {agree}, at least {config.min_inlier_ratio:.0%} needed")
    weight = 1 / detections.sigma_px_K[inlier] ** 2
    H = np.einsum("k,kai,kaj->ij", weight, J_K26[inlier], J_K26[inlier])
    if np.linalg.cond(H) > 1e12:
        return DEGENERATE
    # errors are cut at inlier_px: the factor only widens the covariance, it never narrows it
    factor = max(1.0, float((weight * error2[inlier]).sum() / max(2 * count - 6, 1)))
    covariance = factor * np.linalg.inv(H)
    pose = PoseEstimate(
        T, (covariance + covariance.T) / 2, inlier, float(np.sqrt(error2[inlier].mean()))
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
