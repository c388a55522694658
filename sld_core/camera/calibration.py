"""Calibrations of cameras: files that say how a lens projects, and the pinhole cameras they
give."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from sld_core.camera.undistortion import Undistortion, undistortion
from sld_core.files import read_text
from sld_core.types import Camera, SldError

# of the longer side: a field of view of 45 degrees, between the lenses of telephones and of webcams
GUESSED_FOCAL = 1.2
# of a side, for a principal point; those of real cameras are a few per cent off the middle
MAX_OFF_CENTRE = 0.15
EXPECTED = "a 3x3 matrix in a text file, or the YAML file that camera_calibration writes"


@dataclass(frozen=True)
class Calibration:
    """`K` 3x3 and the distortion coefficients `D` of a ROS distortion model, in the OpenCV
    convention (pixel centres at integers). `width` and `height` are 0 where the file does not say
    for which images it holds."""

    width: int
    height: int
    K: np.ndarray
    D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = ""
    source: str = "calibration"  # where it came from, for messages

    def undistortion(self, width: int, height: int) -> Undistortion:
        """For images of this size; SldError when the calibration is of another one."""
        if self.width and (width, height) != (self.width, self.height):
            raise SldError(
                f"image is {width}x{height} but {self.source} is for {self.width}x{self.height}"
            )
        if not self.width:
            check_size(self.K, width, height, self.source)
        return undistortion(self.K, self.D, self.model, width, height)


def check_size(K: np.ndarray, width: int, height: int, source: object) -> None:
    """SldError where a matrix that does not say its size is plainly one of images of another
    size."""
    twice = 2 * K[:2, 2] + 1  # the size of the images whose middle is the principal point
    if (np.abs(twice / (width, height) - 1) > 2 * MAX_OFF_CENTRE).any():
        raise SldError(
            f"image is {width}x{height} but {source} is for images of about "
            f"{twice[0]:.0f}x{twice[1]:.0f}, as its "
            "principal point says; scale fx, fy, cx and cy along with the images, or calibrate "
            "at the size that is used"
        )


class Lenses:
    """The undistortion of each image size, made once. Without a calibration every camera is a guess
    and nothing is undistorted."""

    def __init__(self, calibration: Calibration | None):
        self.calibration = calibration
        self._made: dict[tuple[int, int, float], Undistortion] = {}

    def __call__(self, width: int, height: int, focal_px: float = 0.0) -> Undistortion:
        """`focal_px` is the guess where there is no calibration (0: none)."""
        key = width, height, focal_px
        if key not in self._made:
            self._made[key] = (
                self.calibration.undistortion(width, height)
                if self.calibration
                else Undistortion(guessed_camera(width, height, focal_px), None)
            )
        return self._made[key]


def guessed_camera(width: int, height: int, focal_px: float = 0.0) -> Camera:
    """A first guess of a camera nobody calibrated."""
    focal = focal_px or GUESSED_FOCAL * max(width, height)
    return Camera(width, height, focal, focal, width / 2, height / 2)


def read_intrinsics(path: Path, width: int, height: int) -> Camera:
    """The camera of a calibration file (see `read_calibration`) for images of this size that are
    free of distortion."""
    calibration = read_calibration(path)
    if calibration.D.any():
        raise SldError(f"{path}: has distortion; expected images free of it, and a 3x3 matrix")
    return calibration.undistortion(width, height).camera


def read_calibration(path: Path) -> Calibration:
    """From a 3x3 matrix in a text file (OpenCV convention, no distortion, for images of any size)
    or from the YAML file of ROS's camera_calibration; SldError when it is neither."""
    path = Path(path)
    text = read_text(path, expected=EXPECTED)
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        return _from_yaml(path, text)
    return _checked(path, 0, 0, values, [], "")


def _from_yaml(path: Path, text: str) -> Calibration:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SldError(
            f"{path}: no calibration ({str(error).splitlines()[0]}); expected {EXPECTED}"
        ) from None
    if not isinstance(content, dict):
        raise SldError(f"{path}: no calibration; expected {EXPECTED}")
    try:
        width, height = content["image_width"], content["image_height"]
        K, D = content["camera_matrix"]["data"], content["distortion_coefficients"]["data"]
        model = content["distortion_model"]
    except (KeyError, TypeError, IndexError) as error:
        raise SldError(f"{path}: no calibration (lacks {error}); expected {EXPECTED}") from None
    if type(width) is not int or type(height) is not int or not isinstance(model, str):
        raise SldError(
            f"{path}: image_width, image_height, distortion_model = {width!r:.40}, "
            f"{height!r:.40}, {model!r:.40}; expected two whole numbers and a name"
        )
    if width < 1 or height < 1:
        raise SldError(f"{path}: image size {width}x{height}; expected 1 to 16384 pixels a side")
    return _checked(path, width, height, K, D, model)


def _checked(path: Path, width: int, height: int, K, D, model: str) -> Calibration:
    if not _are_numbers(K) or len(K) != 9:
        raise SldError(f"{path}: the camera matrix is not a list of 9 numbers; expected {EXPECTED}")
    if not _are_numbers(D) or len(D) > 14:
        raise SldError(
            f"{path}: the distortion coefficients are not a list of up to 14 numbers; expected "
            f"{EXPECTED}"
        )
    matrix = np.array(K, float).reshape(3, 3)
    zeros = matrix[[1, 2, 2], [0, 0, 1]]
    if np.abs(zeros).max() > 1e-9 or matrix[2, 2] != 1:
        raise SldError(f"{path}: camera matrix {matrix.tolist()}: expected fx 0 cx, 0 fy cy, 0 0 1")
    try:
        # of one pixel: checks all but the size, and makes no maps of millions of pixels
        undistortion(matrix, np.array(D, float), model, 1, 1)
        Camera.from_opencv(width or 1, height or 1, matrix)
    except SldError as error:
        raise SldError(f"{path}: {error}") from None
    return Calibration(width, height, matrix, np.array(D, float), model, str(path))


def _are_numbers(values) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) for v in values)
