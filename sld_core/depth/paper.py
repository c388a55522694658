"""The paper's depth completion (section 3.2): one small neural network per image, from monocular
depth, colour and place to depth."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from sld_core.types import SldError

SEED = 42
TEST_SHARE = 0.2
MIN_KNOWN = 10


@dataclass(frozen=True)
class PaperFit:
    """The regressor of one image with its scaler, its errors on a held-out fifth of the pixels, and
    its loss curve."""

    regressor: object  # sklearn.neural_network.MLPRegressor
    scaler: object  # sklearn.preprocessing.StandardScaler
    test_mse: float  # square units of depth
    test_mae: float  # units of depth
    loss_curve: list[float]


def fit(
    depth_HW: np.ndarray, mono_HW: np.ndarray, rgb_HW3: np.ndarray, max_pixels: int | None = None
) -> PaperFit:
    """Fit to all pixels whose depth is known (not 0, not NaN), 80 % to learn from and 20 % to test.

    `max_pixels` learns from a random part, which is not what the paper does but takes
    proportionally less time."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPRegressor
    from sklearn.preprocessing import StandardScaler

    with np.errstate(invalid="ignore"):
        known = (np.isfinite(depth_HW) & (depth_HW > 0)).ravel()
    if known.sum() < MIN_KNOWN:
        raise SldError(
            f"{known.sum()} known depths in the image: expected at least {MIN_KNOWN} to learn from"
        )
    x_train, x_test, y_train, y_test = train_test_split(
        features(mono_HW, rgb_HW3)[known],
        depth_HW.ravel()[known],
        test_size=TEST_SHARE,
        random_state=SEED,
    )
    x_train, y_train = x_train[:max_pixels], y_train[:max_pixels]  # the split has shuffled them
    scaler = StandardScaler().fit(x_train)
    regressor = MLPRegressor(hidden_layer_sizes=(100, 50), random_state=SEED, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss curve tells
        regressor.fit(scaler.transform(x_train), y_train)
    error = regressor.predict(scaler.transform(x_test)) - y_test
    return PaperFit(
        regressor,
        scaler,
        float((error**2).mean()),
        float(np.abs(error).mean()),
        list(regressor.loss_curve_),
    )


def features(mono_HW: np.ndarray, rgb_HW3: np.ndarray) -> np.ndarray:
    """(H*W, 6): monocular depth, R, G, B (0..255), x (column), y (row)."""
    height, width = mono_HW.shape
    y, x = np.mgrid[:height, :width]
    return np.column_stack([mono_HW.ravel(), rgb_HW3.reshape(-1, 3), x.ravel(), y.ravel()]).astype(
        np.float64
    )


def predict_depth(
    regressor, scaler, mono_depth: np.ndarray, rgb: np.ndarray, pixel: tuple[int, int]
) -> float:
    """The depth at one `pixel` (x, y) of an image with monocular depth (H, W) and colours (H, W,
    3), by a fitted regressor."""
    x, y = int(pixel[0]), int(pixel[1])
    height, width = mono_depth.shape
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"pixel ({x}, {y}): expected one inside the image of {width}x{height}")
    row = np.array([[mono_depth[y, x], *rgb[y, x], x, y]], float)
    return float(regressor.predict(scaler.transform(row))[0])


def predict_image(fitted: PaperFit, mono_HW: np.ndarray, rgb_HW3: np.ndarray) -> np.ndarray:
    """The depth (H, W) at every pixel, in one go."""
    rows = fitted.scaler.transform(features(mono_HW, rgb_HW3))
    return fitted.regressor.predict(rows).reshape(mono_HW.shape)
