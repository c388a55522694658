"""Depth completion by a Gaussian process on log depth, followed by edge-aware diffusion of its
residuals.

The process is over position, monocular depth and colour: near known pixels it interpolates, mainly
between pixels that look alike; far from them it falls back on a quadratic in position and monocular
depth, whose uncertain coefficients shrink to a constant. The monocular depth is only a feature, so
a network that is wrong about a room does no harm where measurements contradict it. The kernel is
exponential (Ornstein-Uhlenbeck), which follows edges better than the smooth squared exponential.
The residuals at known pixels are spread by weighted diffusion that stops at edges of colour and of
predicted depth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from sld_core.config.mapping import GaussianProcessConfig

KNOWN_WEIGHT = 10.0  # of a known value against one neighbour, when residuals are spread
MAX_RESIDUAL = 1.0  # of log depth
RIM_PX = 2  # width of the rim of known pixels whose residuals are spread


@dataclass(frozen=True)
class _Work:
    """An image at working resolution: log depth (0 where unknown), the share of each pixel that is
    known, features."""

    log_depth_HW: np.ndarray
    known_HW: np.ndarray
    feature_PF: np.ndarray  # distances between rows are in correlation lengths
    mean_PM: np.ndarray  # terms of the mean
    rgb_HW3: np.ndarray  # 0..1, blurred


def fill(
    known_HW: np.ndarray,
    mono_HW: np.ndarray,
    rgb_HW3: np.ndarray,
    rng: np.random.Generator,
    config: GaussianProcessConfig,
) -> np.ndarray:
    """Depth (H, W) from known depths (0: none), relative inverse depth and colours (uint8)."""
    work = _reduced(known_HW, mono_HW, rgb_HW3, config)
    log_depth_HW = work.log_depth_HW.copy()
    asked_Q = _asked(work.known_HW)
    if len(asked_Q):
        predicted_Q = _regress(work, asked_Q, rng, config)
        log_depth_HW.flat[asked_Q] = predicted_Q + _spread(work, asked_Q, predicted_Q, config)
    size = known_HW.shape[::-1]
    return np.exp(cv2.resize(log_depth_HW.astype(np.float32), size, interpolation=cv2.INTER_LINEAR))


def _asked(known_HW: np.ndarray) -> np.ndarray:
    """Indices of the unknown pixels, and of a rim of known ones around them."""
    rim = np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8)
    return np.flatnonzero(cv2.dilate((known_HW == 0).astype(np.uint8), rim))


def _reduced(known_HW, mono_HW, rgb_HW3, config: GaussianProcessConfig) -> _Work:
    height, width = known_HW.shape
    scale = min(1.0, config.work_side_px / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def shrink(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)

    measured = known_HW > 0
    share = shrink(measured)
    # inverse depth is linear on planes
    inverse = shrink(np.where(measured, 1 / np.maximum(known_HW, 1e-9), 0))
    known = share > 1e-3
    log_depth = np.where(known, np.log(np.maximum(share, 1e-9) / np.maximum(inverse, 1e-12)), 0)
    rgb = cv2.GaussianBlur(shrink(rgb_HW3) / 255, (0, 0), config.color_blur_px)
    return _Work(
        log_depth, np.where(known, share, 0), *_features(shrink(mono_HW), rgb, config), rgb
    )


def _features(
    mono_HW: np.ndarray, rgb_HW3: np.ndarray, config: GaussianProcessConfig
) -> tuple[np.ndarray, np.ndarray]:
    height, width = mono_HW.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1) / max(height, width)
    mono = ((mono_HW - mono_HW.mean()) / max(float(mono_HW.std()), 1e-6)).ravel()
    lab = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2LAB).reshape(-1, 3) / 100 * [1, 2, 2]
    feature = np.column_stack(
        [x / config.length, y / config.length, mono / config.mono_length, lab / config.color_length]
    )
    x, y = x - x.mean(), y - y.mean()
    mean = np.column_stack([np.ones_like(x), x, y, mono, x * y, mono**2, x**2, y**2])
    return feature.astype(np.float32), mean.astype(np.float32)


def _regress(
    work: _Work, asked_Q: np.ndarray, rng: np.random.Generator, config: GaussianProcessConfig
) -> np.ndarray:
    """Mean of the process at the pixels asked for (Q,), given a sample of the known ones."""
    sample = _sample(work.known_HW, rng, config.samples)
    value = work.log_depth_HW.ravel()[sample].astype(float)
    centre, spread = value.mean(), max(float(value.std()), 1e-6)
    covariance = _covariance(work, sample, sample, config).astype(float)
    covariance[np.diag_indices(len(sample))] += config.noise
    weight = scipy.linalg.solve(covariance, (value - centre) / spread, assume_a="pos")
    return _covariance(work, asked_Q, sample, config) @ weight.astype(np.float32) * spread + centre


def _sample(known_HW: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Indices of known pixels, more of them near unknown ones."""
    known = np.flatnonzero(known_HW)
    if len(known) <= count:
        return known
    distance = cv2.distanceTransform((known_HW > 0).astype(np.uint8), cv2.DIST_L2, 3).ravel()[known]
    chance = 1 / (distance + 2)
    return rng.choice(known, count, replace=False, p=chance / chance.sum())


def _covariance(
    work: _Work, a: np.ndarray, b: np.ndarray, config: GaussianProcessConfig
) -> np.ndarray:
    """float32 (len(a), len(b)) between the values at pixels a and b."""
    A, B = work.feature_PF[a], work.feature_PF[b]
    squares = (A**2).sum(1)[:, None] + (B**2).sum(1) - 2 * A @ B.T
    mean = np.float32(config.mean_weight) * work.mean_PM[a] @ work.mean_PM[b].T
    return np.exp(-np.sqrt(np.maximum(squares, 0))) + mean


def _spread(
    work: _Work, asked_Q: np.ndarray, predicted_Q: np.ndarray, config: GaussianProcessConfig
) -> np.ndarray:
    """Residuals of the log depth (Q,), known minus predicted, diffused over unknown pixels; edges
    stop them, and they fade with distance."""
    residual = np.clip(work.log_depth_HW.flat[asked_Q] - predicted_Q, -MAX_RESIDUAL, MAX_RESIDUAL)
    hold = KNOWN_WEIGHT * work.known_HW.flat[asked_Q]
    a, b, weight = _links(work, asked_Q, predicted_Q, config)
    W = scipy.sparse.coo_matrix((weight, (a, b)), (len(asked_Q), len(asked_Q)))
    W = W + W.T
    system = scipy.sparse.diags(np.asarray(W.sum(1)).ravel() + hold + 1 / config.reach_px**2) - W
    factors = scipy.sparse.linalg.splu(
        system.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
    )
    return factors.solve(hold * residual)


def _links(
    work: _Work, asked_Q: np.ndarray, predicted_Q: np.ndarray, config: GaussianProcessConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of neighbours among the pixels asked for, as positions in `asked_Q`, and the weight
    (0..1) of the diffusion between them."""
    position_HW = np.full(work.known_HW.shape, -1)
    position_HW.flat[asked_Q] = np.arange(len(asked_Q))
    a = np.concatenate([position_HW[:, :-1].ravel(), position_HW[:-1].ravel()])  # left, upper
    b = np.concatenate([position_HW[:, 1:].ravel(), position_HW[1:].ravel()])  # right, lower
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    rgb_Q3 = work.rgb_HW3.reshape(-1, 3)[asked_Q]
    color = np.abs(rgb_Q3[a] - rgb_Q3[b]).max(1) / config.edge_color
    depth = (predicted_Q[a] - predicted_Q[b]) / config.edge_log_depth
    return a, b, 1 / (1 + color**2) / (1 + depth**2)
