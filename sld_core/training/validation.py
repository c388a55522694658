"""How well landmarks are found in images that were not learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FOUND_PX = 16.0  # two cells: a detection this close to its landmark is right


@dataclass(frozen=True)
class ValidationResult:
    """`found`: fraction of the landmarks in view that are detected within FOUND_PX. `precision`:
    fraction of the detections that are right. `pixel_error`: median distance of right detections
    to their landmarks, working pixels (infinite without any). `recall`: fraction of images whose
    pose is within 5 cm / 5 deg; NaN where no poses are computed or the scene is not metric."""

    found: float
    precision: float
    pixel_error: float
    recall: float = math.nan


def summarize(error_px_K: np.ndarray, in_view: int, recall: float = math.nan) -> ValidationResult:
    """The result of K detections, at these distances from their landmarks, in images with `in_view`
    landmarks."""
    right_K = error_px_K[error_px_K < FOUND_PX]
    return ValidationResult(
        found=len(right_K) / max(in_view, 1),
        precision=len(right_K) / max(len(error_px_K), 1),
        pixel_error=float(np.median(right_K)) if len(right_K) else math.inf,
        recall=recall,
    )
