"""Results of validation by hand."""

import math

import numpy as np
import pytest

from sld_core.training.validation import ValidationResult, summarize


def test_results_by_hand():
    """Five landmarks in view, four detections: two right, 1 and 3 px off; two wrong."""
    result = summarize(np.array([1.0, 17.0, 3.0, np.inf]), in_view=5, recall=0.5)
    assert result == ValidationResult(found=0.4, precision=0.5, pixel_error=2.0, recall=0.5)


def test_a_detection_whose_landmark_is_behind_the_camera_is_wrong():
    result = summarize(np.array([np.nan, 2.0]), in_view=1)
    assert (result.found, result.precision, result.pixel_error) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize("in_view", [0, 3])
def test_nothing_detected(in_view):
    result = summarize(np.zeros(0), in_view)
    assert (result.found, result.precision, result.pixel_error) == (0.0, 0.0, math.inf)
    assert math.isnan(result.recall)
