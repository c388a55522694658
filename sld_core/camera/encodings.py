"""Pixels as cameras and files encode them <-> arrays."""

from __future__ import annotations

import io
from typing import BinaryIO

import cv2
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

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

PLUGINS = {b"\xff\xd8": JpegImageFile, b"\x89P": PngImageFile}
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
        width, height = encoded_size(io.BytesIO(raw))
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
            f"{len(raw)} bytes do not hold the {width}x{height} pixels of its header"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def encoded_size(file: BinaryIO) -> tuple[int, int]:
    """(width, height) of a JPEG or PNG from its header alone, before any memory is taken for its
    pixels."""
    magic = file.read(2)
    if magic not in PLUGINS:
        raise SldError("neither JPEG nor PNG")
    file.seek(0)
    # the plugins themselves, since Image.open refuses large images without saying how large
    try:
        return PLUGINS[magic](file).size
    except Exception as error:  # Pillow raises anything on damaged headers
        raise SldError(f"a damaged {PLUGINS[magic].format}, perhaps cut short ({error})") from None


def encode_jpeg(rgb_HW3: np.ndarray, quality: int) -> bytes:
    """HW3 uint8 RGB as a JPEG file."""
    bgr = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_png(values_HW: np.ndarray) -> bytes:
    """HW uint8 or uint16 of one channel as a PNG file."""
    return cv2.imencode(".png", values_HW)[1].tobytes()
