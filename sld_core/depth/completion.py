"""Depth completion: from the known depths of an image and its monocular depth to a depth
everywhere.

Every method is called the same way: known_HW (depth, any unit; 0 or not finite: none), mono_HW
(relative inverse depth, near = large), rgb_HW3 (uint8), all of one size -> depth_HW (float32,
finite, > 0). Known depths are returned unchanged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from sld_core.config.mapping import DepthConfig
from sld_core.depth import gaussian_process, paper
from sld_core.types import SldError

Completion = Callable[..., np.ndarray]  # (known_HW, mono_HW, rgb_HW3, rng=None) -> depth_HW

MIN_KNOWN = 10
NEAREST = 0.7  # completed depths are at least this part of the nearest known one
HUBER = 1.345  # standard deviations up to which residuals count fully
MAX_TREE_PIXELS = 100_000


def method_of(config: DepthConfig) -> Completion:
    """The completion that a configuration names, with its settings."""
    method = BARE[config.method]
    if config.method == "gaussian_process":
        method = partial(method, config=config.gaussian_process)
    return checked(method, config.max_depth_ratio)


def checked(method: Callable, farthest: float = DepthConfig().max_depth_ratio) -> Completion:
    """`method` with enough known depths ensured and kept, and its output limited to `farthest`
    times the farthest known one."""

    def complete(
        known_HW: np.ndarray,
        mono_HW: np.ndarray,
        rgb_HW3: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        known_HW = known_only(known_HW)
        measured = known_HW > 0
        if measured.sum() < MIN_KNOWN:
            raise SldError(
                f"{measured.sum()} known depths in the image: expected at least {MIN_KNOWN} to "
                "complete from"
            )
        rng = rng or np.random.default_rng(0)
        depth = np.asarray(
            method(known_HW, np.asarray(mono_HW, np.float32), rgb_HW3, rng), np.float32
        )
        near, far = known_HW[measured].min(), known_HW[measured].max()
        return np.where(measured, known_HW, np.clip(depth, NEAREST * near, farthest * far))

    return complete


def known_only(depth_HW: np.ndarray) -> np.ndarray:
    """float32 with 0 wherever a depth is zero, negative or not finite."""
    depth_HW = np.asarray(depth_HW, np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(0))


def _scale_shift(known_HW, mono_HW, rgb_HW3, rng) -> np.ndarray:
    """One scale and one shift between monocular and true inverse depth: what such a network leaves
    open."""
    measured = known_HW > 0
    scale, shift = scale_and_shift(mono_HW[measured], 1 / known_HW[measured])
    inverse = scale * mono_HW + shift
    # an inverse depth that is not positive is behind infinity; the clip to the known range brings
    # it back
    return 1 / np.maximum(inverse, 1e-6)


def scale_and_shift(
    mono_N: np.ndarray, inverse_N: np.ndarray, rounds: int = 20
) -> tuple[float, float]:
    """(scale, shift) with scale * mono + shift = inverse, by least squares robust to outliers
    (Huber, reweighted)."""
    A = np.stack([mono_N, np.ones_like(mono_N)], 1).astype(float)
    b, weight = np.asarray(inverse_N, float), np.ones(len(mono_N))
    solution = np.zeros(2)
    for _ in range(rounds):
        root = np.sqrt(weight)
        solution, before = np.linalg.lstsq(A * root[:, None], b * root, rcond=None)[0], solution
        residual = np.abs(A @ solution - b)
        limit = HUBER * 1.4826 * np.median(residual) + 1e-12
        weight = np.minimum(1, limit / np.maximum(residual, limit))
        if np.abs(solution - before).max() <= 1e-6 * np.abs(solution).max():
            break
    return float(solution[0]), float(solution[1])


def _hist_gradient_boosting(known_HW, mono_HW, rgb_HW3, rng) -> np.ndarray:
    """Gradient-boosted trees on the paper's features; trees need no scaling. From at most
    MAX_TREE_PIXELS known pixels."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    features, measured = paper.features(mono_HW, rgb_HW3), (known_HW > 0).ravel()
    chosen = np.flatnonzero(measured)
    if len(chosen) > MAX_TREE_PIXELS:
        chosen = rng.choice(chosen, MAX_TREE_PIXELS, replace=False)
    regressor = HistGradientBoostingRegressor(random_state=42).fit(
        features[chosen], known_HW.ravel()[chosen]
    )
    return regressor.predict(features).reshape(known_HW.shape)


def _paper(known_HW, mono_HW, rgb_HW3, rng) -> np.ndarray:
    return paper.predict_image(paper.fit(known_HW, mono_HW, rgb_HW3), mono_HW, rgb_HW3)


BARE = {
    "gaussian_process": gaussian_process.fill,
    "hist_gradient_boosting": _hist_gradient_boosting,
    "scale_shift": _scale_shift,
    "paper": _paper,
}
# with the default settings
METHODS: dict[str, Completion] = {name: method_of(DepthConfig(method=name)) for name in BARE}
DEFAULT = DepthConfig().method
