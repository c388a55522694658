"""How wrong completed depths are where the truth was hidden."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from sld_core.depth.completion import Completion, known_only


@dataclass(frozen=True)
class DepthErrors:
    """Over `pixels` hidden pixels: mean absolute and mean squared error (units of depth and their
    square), mean of |error| / truth, and the share of pixels off by less than a factor of 1.25."""

    mae: float
    mse: float
    absrel: float
    delta1: float
    pixels: int


def depth_errors(
    predicted_HW: np.ndarray, truth_HW: np.ndarray, hidden_HW: np.ndarray
) -> DepthErrors:
    """Errors at the pixels `hidden_HW` whose truth is known; they must not be none, and predictions
    must be positive there."""
    at = hidden_HW & (known_only(truth_HW) > 0)
    if not at.any():
        raise ValueError("no hidden pixel has a known depth: nothing to measure")
    predicted, truth = predicted_HW[at].astype(float), truth_HW[at].astype(float)
    error = np.abs(predicted - truth)
    ratio = np.maximum(predicted / truth, truth / np.maximum(predicted, 1e-12))
    return DepthErrors(
        float(error.mean()),
        float((error**2).mean()),
        float((error / truth).mean()),
        float((ratio < 1.25).mean()),
        int(at.sum()),
    )


def evaluate(
    method: Completion,
    depth_HW: np.ndarray,
    mono_HW: np.ndarray,
    rgb_HW3: np.ndarray,
    hidden_HW: np.ndarray,
    rng: np.random.Generator,
) -> tuple[DepthErrors, np.ndarray, float]:
    """Errors at the hidden pixels, the completed depth and the seconds that it took. The method
    sees 0 where depth is hidden."""
    known_HW = np.where(hidden_HW, np.float32(0), known_only(depth_HW))
    start = time.perf_counter()
    completed_HW = method(known_HW, mono_HW, rgb_HW3, rng)
    seconds = time.perf_counter() - start
    return depth_errors(completed_HW, depth_HW, hidden_HW), completed_HW, seconds
