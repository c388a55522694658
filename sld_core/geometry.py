"""Rigid transforms, projection and pose error. `T_dst_src` is 4x4 and maps points of src to dst."""

from __future__ import annotations

import numpy as np

from sld_core.types import Camera


def invert(T: np.ndarray) -> np.ndarray:
    """Inverse of a rigid 4x4 transform."""
    R, t = T[:3, :3], T[:3, 3]
    out = np.eye(4)
    out[:3, :3] = R.T
    out[:3, 3] = -R.T @ t
    return out


def transform(T_dst_src: np.ndarray, xyz_N3: np.ndarray) -> np.ndarray:
    """Points of src (N, 3) in dst (N, 3)."""
    return xyz_N3 @ T_dst_src[:3, :3].T + T_dst_src[:3, 3]


def project(
    camera: Camera, T_camera_world: np.ndarray, xyz_N3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2), corner origin, and depths (N,) of world points; pixels are NaN where the depth
    is not positive."""
    xyz = transform(T_camera_world, xyz_N3)
    z = xyz[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = xyz[:, :2] / np.where(z > 1e-9, z, np.nan)[:, None]
    return xy * [camera.fx, camera.fy] + [camera.cx, camera.cy], z


def inside(camera: Camera, xy_N2: np.ndarray, margin_px: float) -> np.ndarray:
    """Which pixels (N,) are at least `margin_px` from the image's border; NaN is not."""
    size = np.array([camera.width, camera.height])
    with np.errstate(invalid="ignore"):
        return ((xy_N2 >= margin_px) & (xy_N2 <= size - margin_px)).all(1)


def projection_jacobian(
    camera: Camera, T_world_camera: np.ndarray, xyz_N3: np.ndarray
) -> np.ndarray:
    """How pixels move with world points, d(xy) / d(xyz) (N, 2, 3); of points that are not in front
    of the camera, numbers without meaning."""
    right, down, forward = T_world_camera[:3, :3].T
    x, y, z = ((xyz_N3 - T_world_camera[:3, 3]) @ T_world_camera[:3, :3]).T[:, :, None]
    z = np.where(z > 1e-3, z, 1.0)
    along_x = camera.fx / z * (right - x / z * forward)
    along_y = camera.fy / z * (down - y / z * forward)
    return np.stack([along_x, along_y], 1)


def pose_error(T_a: np.ndarray, T_b: np.ndarray) -> tuple[float, float]:
    """Distance of the positions (metres) and angle between the rotations (radians) of two poses in
    one frame."""
    R = T_a[:3, :3].T @ T_b[:3, :3]
    # atan2 keeps small angles, which arccos of the trace loses in rounding
    sine = np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2
    angle_rad = np.arctan2(sine, (np.trace(R) - 1) / 2)
    return float(np.linalg.norm(T_a[:3, 3] - T_b[:3, 3])), float(angle_rad)


def pose_difference(T_a: np.ndarray, T_b: np.ndarray) -> np.ndarray:
    """What moves pose a to pose b (6,): position, and the rotation vector w of R_b = exp(w) R_a, in
    world axes (radians), as in the covariance of PoseEstimate."""
    x, y, z, cosine = quaternion_from_rotation(T_b[:3, :3] @ T_a[:3, :3].T)
    sine = np.linalg.norm([x, y, z])
    scale = 2 * np.arctan2(sine, cosine) / sine if sine > 1e-12 else 2.0
    return np.concatenate([T_b[:3, 3] - T_a[:3, 3], scale * np.array([x, y, z])])


def rotation_from_vector(w: np.ndarray) -> np.ndarray:
    """exp of a rotation vector (radians): Rodrigues' formula."""
    theta = float(np.linalg.norm(w))
    W = skew(w)
    if theta < 1e-8:
        return np.eye(3) + W
    return np.eye(3) + np.sin(theta) / theta * W + (1 - np.cos(theta)) / theta**2 * W @ W


def skew(v: np.ndarray) -> np.ndarray:
    """The matrix [v]x with [v]x u = v x u."""
    x, y, z = v
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0.0]])


def rotation_from_quaternion(xyzw: np.ndarray) -> np.ndarray:
    """3x3 rotation of a quaternion (x, y, z, w), normalised first; ValueError where it is zero or
    not finite."""
    q = np.asarray(xyzw, float)
    norm = np.linalg.norm(q)
    if not np.isfinite(norm) or norm < 1e-6:
        raise ValueError(f"quaternion xyzw={q.tolist()}: expected a finite one of length 1")
    x, y, z, w = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(R: np.ndarray) -> np.ndarray:
    """Quaternion (x, y, z, w), w >= 0, of a 3x3 rotation."""
    # the largest of 4w^2, 4x^2, 4y^2, 4z^2 is the safe divisor
    xx, yy, zz = R[0, 0], R[1, 1], R[2, 2]
    squares = np.array([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz])
    i = int(np.argmax(squares))
    if i == 3:
        q = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1], squares[3]])
    else:
        j, k = (i + 1) % 3, (i + 2) % 3
        q = np.empty(4)
        q[i], q[j], q[k], q[3] = squares[i], R[j, i] + R[i, j], R[k, i] + R[i, k], R[k, j] - R[j, k]
    q /= np.linalg.norm(q)
    return q if q[3] >= 0 else -q


def make_transform(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """4x4 from rotation and translation."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def interpolate(T_a: np.ndarray, T_b: np.ndarray, fraction: float) -> np.ndarray:
    """The pose between two poses: position linear, rotation along the geodesic (slerp)."""
    q_a, q_b = quaternion_from_rotation(T_a[:3, :3]), quaternion_from_rotation(T_b[:3, :3])
    dot = float(q_a @ q_b)
    if dot < 0:
        q_b, dot = -q_b, -dot
    if dot > 1 - 1e-10:
        q = q_a + fraction * (q_b - q_a)
    else:
        angle = np.arccos(dot)
        q = (np.sin((1 - fraction) * angle) * q_a + np.sin(fraction * angle) * q_b) / np.sin(angle)
    return make_transform(
        rotation_from_quaternion(q), (1 - fraction) * T_a[:3, 3] + fraction * T_b[:3, 3]
    )


def similarity(
    source_N3: np.ndarray, target_N3: np.ndarray, with_scale: bool = True
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R, translation t that minimise |s R source + t - target|^2 (Umeyama, TPAMI
    1991)."""
    mu_s, mu_t = source_N3.mean(0), target_N3.mean(0)
    S, T = source_N3 - mu_s, target_N3 - mu_t
    U, D, Vt = np.linalg.svd(T.T @ S / len(S))
    sign = np.array([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = U @ np.diag(sign) @ Vt
    scale = float((D * sign).sum() / (S**2).sum(1).mean()) if with_scale else 1.0
    return scale, R, mu_t - scale * R @ mu_s


def mean_up(T_world_camera_F44: np.ndarray) -> np.ndarray:
    """The mean up direction (3,) of the images of a drive, in the world."""
    up = -T_world_camera_F44[:, :3, 1].mean(0)
    return up / max(float(np.linalg.norm(up)), 1e-9)


def upright_angle(T_world_camera: np.ndarray, up_3: np.ndarray) -> float:
    """The angle (radians, x towards y) that turns an image so that `up_3` points upwards in it; 0
    where the camera looks within 20 degrees of straight up or down."""
    x, y, _ = T_world_camera[:3, :3].T @ up_3
    if np.hypot(x, y) < np.sin(np.radians(20)):
        return 0.0
    return float(np.arctan2(-x, -y))
