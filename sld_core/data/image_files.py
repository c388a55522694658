"""Writing the images and depth images of frames, and reading depth images of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sld_core.camera.encodings import encode_jpeg, encode_png
from sld_core.camera.images import image_size, read_depth
from sld_core.types import SldError


def write_jpeg(path: Path, rgb_HW3: np.ndarray, quality: int) -> None:
    """HW3 uint8 RGB as JPEG."""
    write_bytes(path, encode_jpeg(rgb_HW3, quality))


def write_depth(path: Path, depth_mm_HW: np.ndarray) -> None:
    """HW uint16 millimetres, 0 = none, as a 16-bit PNG."""
    write_bytes(path, encode_png(depth_mm_HW))


def write_bytes(path: Path, data: bytes) -> None:
    """A file in a folder that is being filled."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SldError(f"{path}: cannot be written ({error.strerror})") from None


def read_depth_mm(path: Path, shape_of: tuple[int, int]) -> np.ndarray:
    """HW uint16 millimetres of a 16-bit PNG, at any resolution of the same aspect ratio as images
    of `shape_of` (width, height)."""
    width, height = image_size(path)
    if not same_shape((width, height), shape_of):
        raise SldError(
            f"{path}: depth is {width}x{height} but the image is {shape_of[0]}x{shape_of[1]}; "
            "expected the same shape"
        )
    return np.round(read_depth(path) * 1000).astype(np.uint16)


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) are of one aspect ratio, up to the rounding of a pixel."""
    (width, height), (other_width, other_height) = size, other
    return min(*size, *other) > 0 and abs(width * other_height - other_width * height) <= max(
        *size, *other
    )
