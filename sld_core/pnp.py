"""Detections + landmarks + camera -> PoseEstimate with covariance, or the reason there is none."""

from __future__ import annotations

import numpy as np

from sld_core import geometry
from sld_core.config.scene import PnpConfig
from sld_core.optional import poselib
from sld_core.types import Camera, Detections, PoseEstimate


def estimate(
    detections: Detections, xyz_L3: np.ndarray, camera: Camera, config: PnpConfig
) -> PoseEstimate | str:
    """LO-RANSAC (poselib, best scores first), then robust refinement with each detection's own
    sigma."""
    if len(detections) < config.min_inliers:
        return f"{len(detections)} landmarks detected, at least {config.min_inliers} needed"
    xyz = xyz_L3[detections.landmark_K]
    pose, info = poselib.estimate_absolute_pose(
        detections.xy_px_K2,
        xyz,
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
        return (
            f"{info['num_inliers']} of {len(detections)} landmarks agree, at least "
            f"{config.min_inliers} needed"
        )
    T_camera_world = np.vstack([pose.Rt, [0, 0, 0, 1]])
    return refine(geometry.invert(T_camera_world), detections, xyz_L3, camera, config)


def refine(
    T_world_camera: np.ndarray,
    detections: Detections,
    xyz_L3: np.ndarray,
    camera: Camera,
    config: PnpConfig,
) -> PoseEstimate | str:
    """Iteratively reweighted Gauss-Newton from a nearby pose.

    The covariance is (J' W J)^-1, scaled by the residuals where they are larger than the sigmas
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
            return "the landmarks detected do not fix a pose (degenerate arrangement)"
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
    and which points lie in front of the camera.

    With v = X - c and x = R'v: moving c by d changes x by -R'd, turning R to exp(w) R changes it by
    R'(v x w)."""
    R, v = T_world_camera[:3, :3], xyz_K3 - T_world_camera[:3, 3]
    x, y, z = (v @ R).T
    front = z > 1e-3
    z = np.where(front, z, 1.0)
    residual = (
        np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1) - xy_px_K2
    )
    zero = np.zeros_like(z)
    D_K23 = np.stack(
        [
            np.stack([camera.fx / z, zero, -camera.fx * x / z**2], 1),
            np.stack([zero, camera.fy / z, -camera.fy * y / z**2], 1),
        ],
        1,
    )
    cross = np.stack(
        [
            np.stack([zero, -v[:, 2], v[:, 1]], 1),
            np.stack([v[:, 2], zero, -v[:, 0]], 1),
            np.stack([-v[:, 1], v[:, 0], zero], 1),
        ],
        1,
    )  # [v]x, with v x w = [v]x w
    J_world = np.concatenate([np.broadcast_to(-np.eye(3), cross.shape), cross], 2)
    return residual, D_K23 @ (R.T @ J_world), front


def _assess(
    T: np.ndarray, detections: Detections, xyz: np.ndarray, camera: Camera, config: PnpConfig
) -> PoseEstimate | str:
    residual_K2, J_K26, front = linearize(T, xyz, detections.xy_px_K2, camera)
    error2 = (residual_K2**2).sum(1)
    inlier = front & (error2 < config.inlier_px**2)
    count = int(inlier.sum())
    if count < config.min_inliers:
        return (
            f"{count} of {len(detections)} landmarks agree within {config.inlier_px} px, at "
            f"least {config.min_inliers} needed"
        )
    if count < config.min_inlier_ratio * len(detections):
        return (
            f"only {count} of {len(detections)} landmarks agree, at least "
            f"{config.min_inlier_ratio:.0%} needed"
        )
    weight = 1 / detections.sigma_px_K[inlier] ** 2
    H = np.einsum("k,kai,kaj->ij", weight, J_K26[inlier], J_K26[inlier])
    # cut at inlier_px, so this only widens the covariance; never narrower than the sigmas promise
    factor = max(1.0, float((weight * error2[inlier]).sum() / max(2 * count - 6, 1)))
    if np.linalg.cond(H) > 1e12:
        return "the landmarks detected do not fix a pose (degenerate arrangement)"
    covariance = factor * np.linalg.inv(H)
    estimate = PoseEstimate(
        T, (covariance + covariance.T) / 2, inlier, float(np.sqrt(error2[inlier].mean()))
    )
    distance_m = float(np.median(np.linalg.norm(xyz[inlier] - T[:3, 3], axis=1)))
    limit_m = min(config.max_position_sigma_m, config.max_relative_sigma * distance_m)
    if (
        estimate.position_sigma_m > limit_m
        or estimate.rotation_sigma_rad > config.max_rotation_sigma_rad
    ):
        unit = (
            "m" if np.isfinite(config.max_position_sigma_m) else "units"
        )  # without a limit in metres there are none
        return (
            f"too uncertain: {estimate.position_sigma_m:.3f} {unit}, "
            f"{np.degrees(estimate.rotation_sigma_rad):.1f} deg "
            f"(standard deviations; landmarks {distance_m:.1f} {unit} away allow {limit_m:.3f} "
            f"{unit})"
        )
    return estimate
