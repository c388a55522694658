"""Pixels as cameras send them -> HWC uint8 RGB."""
from __future__ import annotations

import cv2
import numpy as np

from sld_core.types import SldError

# channels of a pixel, and which of them are red, green and blue
ENCODINGS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)), "mono8": (1, (0, 0, 0))}


def rgb_from_raw(data, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """An uncompressed image (sensor_msgs/Image fields) as (height, width, 3) uint8; rows may be padded to `step` bytes."""
    if encoding not in ENCODINGS:
        raise SldError(f"image encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}")
    channels, rgb = ENCODINGS[encoding]
    raw = np.frombuffer(data, np.uint8)
    if width < 1 or height < 1 or step < width * channels or len(raw) < step * height:
        raise SldError(f"image {width}x{height} {encoding} with step {step} and {len(raw)} bytes: "
                       f"expected a step of at least {width * channels} and step * height bytes")
    pixels = raw[:step * height].reshape(height, step)[:, :width * channels].reshape(height, width, channels)
    return np.ascontiguousarray(pixels if rgb == (0, 1, 2) and channels == 3 else pixels[..., list(rgb)])


def rgb_from_encoded(data) -> np.ndarray:
    """A JPEG or PNG image as (height, width, 3) uint8."""
    raw = np.frombuffer(data, np.uint8)
    # an orientation tag would turn the image away from its camera model
    bgr = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(raw) else None
    if bgr is None:
        raise SldError(f"compressed image of {len(raw)} bytes: expected JPEG or PNG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
