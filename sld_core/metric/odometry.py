"""The similarity that aligns the cameras of a reconstruction with those of odometry, TF or the
user.

Odometry drifts, is off in scale, and jumps when it is lost. Positions and orientations are both
used, each weighted by how well it fits: a drive along a straight line needs the orientations, a
camera whose mounting angle is wrong needs the positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sld_core.config.mapping import MetricConfig
from sld_core.geometry import rotation_from_vector
from sld_core.metric.scale import Scale

HYPOTHESES = 400
MEDIAN_OF_NORM = 1.538  # of a 3D Gaussian of unit standard deviation per axis


@dataclass(frozen=True)
class PoseFit:
    """x_world = scale * R @ x_sfm + t, and the residual of each frame: metres, radians, and whether
    it counts as an inlier. `scale_sigma` is the relative standard deviation of the scale (0 where
    it was given)."""

    scale: float
    R: np.ndarray
    t: np.ndarray
    position_error_N: np.ndarray
    angle_error_N: np.ndarray
    inlier_N: np.ndarray
    baseline_m: float  # diagonal of the box around the given positions of the inliers
    scale_sigma: float


def fit_poses(
    T_sfm_N44: np.ndarray, T_world_N44: np.ndarray, config: MetricConfig, scale: float | None = None
) -> PoseFit | None:
    """The robust similarity from camera poses in the reconstruction to those of the same cameras in
    the world, N >= 3; with `scale` given, only rotation and translation. None where the cameras do
    not move, and scale is asked for.

    Hypotheses from three frames each (least median, then truncated sum), then iteratively
    reweighted Gauss-Newton with Cauchy weights on positions and orientations."""
    middle_c = np.median(T_sfm_N44[:, :3, 3], axis=0)
    middle_p = np.median(T_world_N44[:, :3, 3], axis=0)
    poses = _Poses(
        T_sfm_N44[:, :3, 3] - middle_c,
        T_sfm_N44[:, :3, :3],
        T_world_N44[:, :3, 3] - middle_p,
        T_world_N44[:, :3, :3],
    )
    start = _best_hypothesis(poses, scale, config)
    if start is None:
        return None
    s, R, t, sigma = _refine(poses, *start, scale is None, config)
    metres, radians = _errors(poses, s, R, t)
    inlier = metres <= 4 * _sigma(metres, config.odometry_noise_m)
    inlier &= radians <= 4 * _sigma(radians, np.radians(config.odometry_noise_deg))
    if scale is None:
        sigma = max(sigma, _jackknife(poses, s, R, t, config))
    baseline = float(np.linalg.norm(np.ptp(poses.p[inlier], axis=0))) if inlier.any() else 0.0
    return PoseFit(s, R, t + middle_p - s * R @ middle_c, metres, radians, inlier, baseline, sigma)


def odometry_scale(fit: PoseFit | None, config: MetricConfig) -> Scale:
    """The scale of a fit with free scale, or why it is of no use."""
    if fit is None:
        return Scale("odometry", None, "the camera did not move: positions give no scale")
    residual = residual_of(fit) | {"odometry_scale_sigma_percent": 100 * fit.scale_sigma}
    if fit.baseline_m < config.min_baseline_m:
        reason = (
            f"the camera moved over {fit.baseline_m:.2f} m only; expected at least "
            f"{config.min_baseline_m:g} m (metric.min_baseline_m)"
        )
        return Scale("odometry", None, reason, residual)
    misfit = misfit_of(fit, config)
    if misfit:
        return Scale("odometry", None, misfit, residual)
    if fit.scale_sigma > config.max_scale_sigma:
        reason = (
            f"the scale is uncertain by {100 * fit.scale_sigma:.0f} %; expected at most "
            f"{100 * config.max_scale_sigma:g} % (metric.max_scale_sigma)"
        )
        return Scale("odometry", None, reason, residual)
    return Scale("odometry", fit.scale, residual=residual)


def misfit_of(fit: PoseFit, config: MetricConfig) -> str:
    """Why the given poses cannot be those of the cameras; empty where they can."""
    metres = float(np.median(fit.position_error_N))
    degrees = float(np.degrees(np.median(fit.angle_error_N)))
    if degrees > config.max_odometry_deg:
        return (
            f"the given orientations do not fit those of the images: median {degrees:.0f} deg; "
            "expected poses of the camera optical frame (z forward, x right, y down), camera to "
            "world"
        )
    if metres > max(config.max_odometry_misfit * fit.baseline_m, config.min_baseline_m):
        return (
            f"the given positions do not fit those of the images: median {metres:.2f} m in a drive "
            f"over {fit.baseline_m:.2f} m"
        )
    return ""


def residual_of(fit: PoseFit) -> dict[str, float]:
    """Median and 90th percentile of the residuals over all frames with poses, and the share of
    inliers."""
    degrees = np.degrees(fit.angle_error_N)
    return {
        "odometry_median_m": float(np.median(fit.position_error_N)),
        "odometry_p90_m": float(np.percentile(fit.position_error_N, 90)),
        "odometry_median_deg": float(np.median(degrees)),
        "odometry_p90_deg": float(np.percentile(degrees, 90)),
        "odometry_inlier_share": float(fit.inlier_N.mean()),
        "odometry_frames": float(len(fit.inlier_N)),
    }


@dataclass(frozen=True)
class _Poses:
    """Positions and rotations of the same cameras: c, C in the reconstruction, p, P in the
    world."""

    c: np.ndarray
    C: np.ndarray
    p: np.ndarray
    P: np.ndarray

    def __getitem__(self, which) -> _Poses:
        return _Poses(self.c[which], self.C[which], self.p[which], self.P[which])


def _best_hypothesis(poses: _Poses, scale: float | None, config: MetricConfig):
    """The similarity of three frames that fits most frames best; None where none moves."""
    rng = np.random.default_rng(0)
    samples = [rng.choice(len(poses.c), 3, replace=False) for _ in range(HYPOTHESES)]
    tried = [_closed_form(some, scale) for some in (poses, *(poses[s] for s in samples))]
    found = [hypothesis for hypothesis in tried if hypothesis is not None]
    if not found:
        return None
    # a radian counts as much as half of the drive
    lever = max(float(np.median(np.linalg.norm(poses.p - np.median(poses.p, axis=0), axis=1))), 0.1)
    errors = []
    for hypothesis in found:
        metres, radians = _errors(poses, *hypothesis)
        errors.append(metres + lever * radians)
    errors = np.stack(errors)
    # a median alone would be satisfied by the frames of a robot that mostly stood still
    limit = max(3 * float(np.median(errors, axis=1).min()), 10 * config.odometry_noise_m)
    return found[int(np.minimum(errors, limit).sum(1).argmin())]


def _closed_form(poses: _Poses, scale: float | None):
    """Least squares over positions and axis points, weighted so that both settle the rotation
    (Umeyama, TPAMI 1991)."""
    c, p = poses.c - poses.c.mean(0), poses.p - poses.p.mean(0)
    size_c, size_p = float(np.sqrt((c**2).sum(1).mean())), float(np.sqrt((p**2).sum(1).mean()))
    if scale is None and (size_c < 1e-9 or size_p < 1e-9):
        return None
    s = size_p / size_c if scale is None else scale
    lever = max(0.3 * size_p, 1e-3)
    U, _, Vt = np.linalg.svd(s * p.T @ c + lever**2 * np.einsum("nij,nkj->ik", poses.P, poses.C))
    R = U @ np.diag([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))]) @ Vt
    return s, R, poses.p.mean(0) - s * R @ poses.c.mean(0)


def _errors(poses: _Poses, s: float, R: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.linalg.norm(poses.p - s * poses.c @ R.T - t, axis=1),
        np.linalg.norm(_rotation_vectors(poses.P, R @ poses.C), axis=1),
    )


def _rotation_vectors(A_N33: np.ndarray, B_N33: np.ndarray) -> np.ndarray:
    """The vectors (N, 3) with A = exp(vector) B."""
    D = A_N33 @ np.swapaxes(B_N33, 1, 2)
    twice = [D[:, 2, 1] - D[:, 1, 2], D[:, 0, 2] - D[:, 2, 0], D[:, 1, 0] - D[:, 0, 1]]
    axis = np.stack(twice, 1) / 2
    sine = np.linalg.norm(axis, axis=1)
    angle = np.arctan2(sine, (np.trace(D, axis1=1, axis2=2) - 1) / 2)
    # half a turn has no unique axis; such a frame is an outlier along any
    safe = np.where((sine < 1e-9)[:, None], [1.0, 0, 0], axis / np.maximum(sine, 1e-9)[:, None])
    return safe * angle[:, None]


def _sigma(error_N: np.ndarray, floor: float) -> float:
    """Standard deviation per axis of errors given by their length, from their median."""
    return max(float(np.median(error_N)) / MEDIAN_OF_NORM, floor)


def _refine(
    poses: _Poses, s: float, R: np.ndarray, t: np.ndarray, free_scale: bool, config: MetricConfig
):
    """Gauss-Newton in (log scale, rotation, translation) with Cauchy weights; returns scale, R, t
    and the relative standard deviation of the scale, were all errors independent."""
    first = 0 if free_scale else 1  # of the unknowns: a fixed scale is none
    sigma = 0.0
    for _ in range(60):
        H, g = _normal_equations(poses, s, R, t, config)
        H, g = H[first:, first:], g[first:]
        H = H + np.eye(len(H)) * 1e-12 * np.trace(H)
        step = np.concatenate([np.zeros(first), np.linalg.solve(H, g)])
        sigma = float(np.sqrt(np.linalg.inv(H)[0, 0])) if free_scale else 0.0
        turn = rotation_from_vector(step[1:4])
        s, R, t = s * float(np.exp(np.clip(step[0], -0.5, 0.5))), turn @ R, t + step[4:]
        if np.abs(step).max() < 1e-12:
            break
    return s, R, t, sigma


def _normal_equations(
    poses: _Poses, s: float, R: np.ndarray, t: np.ndarray, config: MetricConfig
) -> tuple[np.ndarray, np.ndarray]:
    a = s * poses.c @ R.T
    e, r = poses.p - a - t, _rotation_vectors(poses.P, R @ poses.C)
    weight_e = _cauchy(e, config.odometry_noise_m)
    weight_r = config.orientation_weight * _cauchy(r, np.radians(config.odometry_noise_deg))
    J = np.zeros((len(a), 3, 7))  # of what the model gains by a step
    J[:, :, 0] = a
    J[:, 0, 2], J[:, 1, 3], J[:, 2, 1] = a[:, 2], a[:, 0], a[:, 1]
    J[:, 0, 3], J[:, 1, 1], J[:, 2, 2] = -a[:, 1], -a[:, 2], -a[:, 0]
    J[:, :, 4:] = np.eye(3)
    H = np.einsum("n,nki,nkj->ij", weight_e, J, J)
    H[1:4, 1:4] += np.eye(3) * weight_r.sum()
    g = np.einsum("n,nki,nk->i", weight_e, J, e)
    g[1:4] += weight_r @ r
    return H, g


def _cauchy(vectors_N3: np.ndarray, floor: float) -> np.ndarray:
    length = np.linalg.norm(vectors_N3, axis=1)
    sigma = _sigma(length, floor)
    return 1 / sigma**2 / (1 + (length / (3 * sigma)) ** 2)


def _jackknife(
    poses: _Poses, s: float, R: np.ndarray, t: np.ndarray, config: MetricConfig
) -> float:
    """Relative standard deviation of the scale from leaving out one stretch of the drive after the
    other: drift is not independent noise, so the formal one is far too small."""
    blocks = min(5, len(poses.c) // 3)
    if blocks < 2:
        return 0.0
    stretch = np.arange(len(poses.c)) * blocks // len(poses.c)
    logs = np.log([_refine(poses[stretch != k], s, R, t, True, config)[0] for k in range(blocks)])
    return float(np.sqrt((blocks - 1) / blocks * ((logs - logs.mean()) ** 2).sum()))
