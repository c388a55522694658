"""Reading images as HWC uint8 RGB, with limits so that a hostile file cannot fill the memory."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np

from sld_core.camera.encodings import MAX_PIXELS, encoded_size, rgb_from_encoded
from sld_core.types import Camera, Frame, SldError

MAX_BYTES = 64 * 2**20


def read_image(path: Path) -> np.ndarray:
    """HW3 uint8 RGB; SldError names the file when it is missing, too large or no image."""
    try:
        return rgb_from_encoded(_read_bytes(path))
    except SldError as error:
        raise SldError(f"{path}: {error}") from None


def read_depth(path: Path) -> np.ndarray:
    """HW float32 metres from a 16-bit PNG in millimetres; 0 means none."""
    expected = "expected a 16-bit single-channel PNG of depths in millimetres"
    try:
        data = _read_bytes(path)
        width, height = encoded_size(io.BytesIO(data))
    except SldError as error:
        raise SldError(f"{path}: {error}; {expected}") from None
    if width * height > MAX_PIXELS:
        raise SldError(f"{path}: {width}x{height} pixels; {expected}, at most {MAX_PIXELS} pixels")
    depth = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
        raise SldError(f"{path}: {expected}")
    return depth.astype(np.float32) / 1000


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a JPEG or PNG file from its header alone, without decoding it."""
    try:
        with open(path, "rb") as file:
            return encoded_size(file)
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    except SldError as error:
        raise SldError(f"{path}: {error}") from None


def _read_bytes(path: Path) -> np.ndarray:
    try:
        size = Path(path).stat().st_size
        if not 0 < size <= MAX_BYTES:
            raise SldError(f"{size} bytes; expected an image of 1 to {MAX_BYTES} bytes")
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise SldError(f"cannot be read ({error.strerror})") from None


def fit(image_HW3: np.ndarray, camera: Camera, max_side_px: int) -> tuple[np.ndarray, Camera]:
    """Image and camera scaled down so that the longer side is at most max_side_px; unchanged when
    it already is."""
    height, width = image_HW3.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise SldError(
            f"the image is {width}x{height} but its camera is {camera.width}x{camera.height}; "
            "calibrate at the resolution that is used"
        )
    scale = max_side_px / max(width, height)
    if scale >= 1:
        return image_HW3, camera
    size = round(width * scale), round(height * scale)
    return cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA), camera.resized(*size)


def rotate(image_HW3: np.ndarray, angle_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """The image turned about its centre on a canvas that holds all of it, and A (2x3), which maps
    pixels (corner origin) to it: xy @ A[:, :2].T + A[:, 2]. Positive angles turn x (right) towards
    y (down). At angle 0 nothing is copied."""
    height, width = image_HW3.shape[:2]
    if angle_rad == 0:
        return image_HW3, np.eye(2, 3)
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    size = np.ceil([abs(c) * width + abs(s) * height, abs(s) * width + abs(c) * height]).astype(int)
    A = np.array([[c, -s, 0], [s, c, 0]])
    A[:, 2] = size / 2 - A[:, :2] @ [width / 2, height / 2]
    return cv2.warpAffine(image_HW3, index_warp(A), tuple(size.tolist()), flags=cv2.INTER_LINEAR), A


def index_warp(A_23: np.ndarray) -> np.ndarray:
    """A warp of corner-origin pixels as OpenCV wants it: on pixel indices, whose origin is half a
    pixel from ours."""
    out = A_23.copy()
    out[:, 2] += A_23[:, :2] @ [0.5, 0.5] - 0.5
    return out


def load_upright(frame: Frame, max_side_px: int, angle_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """The frame's image at working size, turned by `angle_rad`, and the 2x3 matrix that maps the
    frame's pixels to it."""
    image, camera = fit(read_image(frame.image_path), frame.camera, max_side_px)
    image, A = rotate(image, angle_rad)
    A[:, :2] *= [camera.width / frame.camera.width, camera.height / frame.camera.height]
    return image, A
