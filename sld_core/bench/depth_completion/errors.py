"""The errors of completed depths where the truth was masked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sld_core.depth.completion import known_only


@dataclass(frozen=True)
class DepthErrors:
    """Over `pixels` masked pixels: mean absolute and mean squared error (units of depth and their
    square), mean of |error| / truth, and the fraction of pixels off by less than a factor of
    1.25."""

    mae: float
    mse: float
    absrel: float
    delta1: float
    pixels: int


def depth_errors(
    predicted_HW: np.ndarray, truth_HW: np.ndarray, masked_HW: np.ndarray
) -> DepthErrors:
    """Errors at the pixels `masked_HW` whose truth is known. There must be at least one, and
    predictions there must be positive."""
    at = masked_HW & (known_only(truth_HW) > 0)
    if not at.any():
        raise ValueError("no masked pixel has a known depth: nothing to measure")
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
