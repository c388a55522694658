"""Pixels as cameras send them -> HWC uint8 RGB."""

from __future__ import annotations

import io
from typing import BinaryIO

import cv2
import numpy as np

from sld_core.types import SldError

# channels of a pixel, and which of them are red, green and blue
CHANNELS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
# OpenCV names a Bayer pattern after the second and third pixel of the second row, ROS after the
# first two rows
CONVERTED = {
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
ENCODINGS = *CHANNELS, "mono16", *CONVERTED
DEPTHS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}  # millimetres, millimetres, metres


MAX_PIXELS = 100_000_000


def rgb_from_raw(
    data, encoding: str, width: int, height: int, step: int, big_endian: bool = False
) -> np.ndarray:
    """An uncompressed image (sensor_msgs/Image fields) as (height, width, 3) uint8; rows may be
    padded to `step` bytes."""
    if encoding in CHANNELS:
        channels, rgb = CHANNELS[encoding]
        pixels = _rows(data, encoding, width, height, step, channels)
        return np.ascontiguousarray(
            pixels if rgb == (0, 1, 2) and channels == 3 else pixels[..., list(rgb)]
        )
    if encoding == "mono16":
        high = _rows(data, encoding, width, height, step, 2)[..., 0 if big_endian else 1]
        return np.repeat(high[..., None], 3, axis=2)
    if encoding not in CONVERTED:
        raise SldError(f"image encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}")
    size, code = CONVERTED[encoding]
    pixels = np.ascontiguousarray(_rows(data, encoding, width, height, step, size))
    if width % 2 or height % 2 and size == 1:
        raise SldError(f"image {width}x{height} {encoding}: expected an even size")
    return cv2.cvtColor(pixels, code)


def depth_mm_from_raw(
    data, encoding: str, width: int, height: int, step: int, big_endian: bool = False
) -> np.ndarray:
    """A depth image (sensor_msgs/Image fields; 16UC1 in millimetres, 32FC1 in metres) as (height,
    width) uint16 millimetres; 0 where there is none, or it is not finite, or beyond 65 m."""
    if encoding not in DEPTHS:
        raise SldError(f"depth image encoding {encoding!r}: expected one of {', '.join(DEPTHS)}")
    kind = np.dtype((">" if big_endian else "<") + DEPTHS[encoding])
    rows = np.ascontiguousarray(_rows(data, encoding, width, height, step, kind.itemsize))
    values = rows.view(kind)[..., 0].astype(kind.newbyteorder("="))
    if kind.kind == "u":
        return values
    values = np.nan_to_num(values * 1000.0, nan=0, posinf=0, neginf=0)
    return np.where((values >= 0) & (values < 65535.5), np.round(values), 0).astype(np.uint16)


def _rows(data, encoding: str, width: int, height: int, step: int, pixel_bytes: int) -> np.ndarray:
    """(height, width, pixel_bytes) uint8, without padding."""
    raw = np.frombuffer(data, np.uint8)
    if width < 1 or height < 1 or step < width * pixel_bytes or len(raw) < step * height:
        raise SldError(
            f"image {width}x{height} {encoding} with step {step} and {len(raw)} bytes: "
            f"expected a step of at least {width * pixel_bytes} and step * height bytes"
        )
    return (
        raw[: step * height]
        .reshape(height, step)[:, : width * pixel_bytes]
        .reshape(height, width, pixel_bytes)
    )


def rgb_from_encoded(data) -> np.ndarray:
    """A JPEG or PNG image as (height, width, 3) uint8."""
    raw = np.frombuffer(data, np.uint8)
    try:
        width, height = encoded_size(io.BytesIO(raw.tobytes()))
    except SldError as error:
        raise SldError(
            f"compressed image of {len(raw)} bytes: {error}; expected JPEG or PNG"
        ) from None
    if width * height > MAX_PIXELS:
        raise SldError(
            f"compressed image of {width}x{height} pixels: expected at most {MAX_PIXELS}"
        )
    # an orientation tag would turn the image away from its camera model
    bgr = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise SldError(
            f"a damaged {'PNG' if raw[0] == 0x89 else 'JPEG'}, perhaps cut short: its "
            f"{len(raw)} bytes do not hold the "
            f"{width}x{height} pixels of its header"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def encoded_size(file: BinaryIO) -> tuple[int, int]:
    """(width, height) of a JPEG or PNG from its header alone, before any memory is taken for its
    pixels."""
    head = file.read(26)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head[:2] == b"\xff\xd8":
        return _jpeg_size(file)
    raise SldError("neither JPEG nor PNG")


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(2)
    while True:
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            raise SldError("a damaged JPEG (no image size in its header)")
        length = int.from_bytes(marker[2:], "big")
        # start-of-frame markers; C4, C8 and CC are tables
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            body = file.read(5)
            return int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        file.seek(max(length - 2, 0), 1)
