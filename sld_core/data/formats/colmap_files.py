"""Cameras and images of a COLMAP model, binary or text, with every count checked against what the
file holds.

Layout: COLMAP's documentation, "Output Format". World to camera; quaternions w x y z; pixels from
the image's corner. pycolmap is not used to read: it takes truncated files for whole ones, and
others make it ask for any amount of memory, or never end (pycolmap 4.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.camera.calibration import Calibration
from sld_core.files import read_text
from sld_core.types import SldError

MAX_BYTES = 4 * 2**30
# name -> (number in binary files, focal lengths, distortion coefficients, model of CameraInfo)
MODELS = {
    "SIMPLE_PINHOLE": (0, 1, 0, ""),
    "PINHOLE": (1, 2, 0, ""),
    "SIMPLE_RADIAL": (2, 1, 1, "plumb_bob"),
    "RADIAL": (3, 1, 2, "plumb_bob"),
    "OPENCV": (4, 2, 4, "plumb_bob"),
    "OPENCV_FISHEYE": (5, 2, 4, "equidistant"),
    "FULL_OPENCV": (6, 2, 8, "rational_polynomial"),
    "SIMPLE_RADIAL_FISHEYE": (8, 1, 1, "equidistant"),
    "RADIAL_FISHEYE": (9, 1, 2, "equidistant"),
}
NUMBERS = {number: name for name, (number, *_) in MODELS.items()}
COEFFICIENTS = {"": 0, "plumb_bob": 4, "equidistant": 4, "rational_polynomial": 8}


@dataclass(frozen=True)
class StoredImage:
    """One registered image: its path below the folder of images, the id of its camera, its pose."""

    name: str
    camera: int
    T_world_camera: np.ndarray


def read_cameras(folder: Path) -> dict[int, Calibration]:
    """The cameras of a model by id; SldError names what is missing, damaged or of a model that is
    not known."""
    cameras = dict(_read(folder, "cameras", _cameras_bin, _cameras_txt))
    if not cameras:
        raise SldError(f"{folder}: no cameras; expected at least one")
    return cameras


def read_images(folder: Path) -> list[StoredImage]:
    """The images of a model that have a pose; SldError names what is missing or damaged."""
    images = _read(folder, "images", _images_bin, _images_txt)
    names = [image.name for image in images]
    if not names or len(set(names)) < len(names):
        raise SldError(
            f"{folder}: {len(names)} images with {len(set(names))} names; expected at least one "
            "image, each with its own name"
        )
    return images


def _read(folder: Path, name: str, read_bin: Callable, read_txt: Callable) -> list:
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of a COLMAP model")
    is_binary = (folder / "cameras.bin").exists()
    if not is_binary and not (folder / "cameras.txt").exists():
        raise SldError(
            f"{folder}: holds no COLMAP model (no cameras.bin or cameras.txt); expected a folder "
            "such as sparse/0"
        )
    path = folder / f"{name}.{'bin' if is_binary else 'txt'}"
    try:
        return read_bin(path) if is_binary else read_txt(path)
    except SldError as error:
        raise SldError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ValueError, IndexError, OverflowError) as error:
        raise SldError(
            f"{path}: damaged ({str(error)[:100]}); expected a file of a COLMAP model"
        ) from None


def _camera(number: int, model: str, width: int, height: int, values: list[float]) -> Calibration:
    if model not in MODELS:
        raise SldError(
            f"camera {number} is of model {model}; expected one of {', '.join(MODELS)}; undistort "
            "it first (colmap image_undistorter)"
        )
    _, focals, count, ros_model = MODELS[model]
    if len(values) != focals + 2 + count:
        raise SldError(f"a {model} camera with {len(values)} parameters")
    fx, fy = values[0], values[focals - 1]
    cx, cy, *distortion = values[focals:]
    K = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])  # pixel centres at integers
    D = np.zeros(COEFFICIENTS[ros_model])
    D[:count] = distortion
    return Calibration(width, height, K, D, ros_model, f"camera {number} of the model")


def _image(name: str, camera: int, pose: list[float]) -> StoredImage:
    """The image of a pose qw qx qy qz tx ty tz, world to camera."""
    w, x, y, z, *t = pose
    if not np.isfinite(pose).all():
        raise SldError(f"image {name[:60]!r}: a pose that is not finite")
    if not name.isprintable() or name.startswith("/") or ".." in name.split("/"):
        raise SldError(f"image name {name[:60]!r} leads out of the folder of images")
    R = geometry.rotation_from_quaternion(np.array([x, y, z, w]))
    T_camera_world = geometry.make_transform(R, np.array(t))
    return StoredImage(name, camera, geometry.invert(T_camera_world))


class _Bytes:
    """The content of a binary file, taken piece by piece; SldError where it ends too early."""

    def __init__(self, path: Path):
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise SldError(f"{path}: {size} bytes; expected at most {MAX_BYTES}")
            self._data = path.read_bytes()
        except OSError as error:
            raise SldError(f"{path}: cannot be read ({error.strerror})") from None
        self._at = 0

    def take(self, dtype, count: int = 1) -> np.ndarray:
        dtype = np.dtype(dtype)
        if count > (len(self._data) - self._at) // dtype.itemsize:
            raise SldError(
                f"ends after {len(self._data)} bytes, in the middle of what it says it holds; "
                "copy the file again"
            )
        out = np.frombuffer(self._data, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return out

    def count(self) -> int:
        """How many things follow; as many bytes must be left."""
        number = int(self.take("<u8")[0])
        if number > len(self._data) - self._at:
            raise SldError(
                f"says that it holds {number} things and has only {len(self._data)} bytes; "
                "copy the file again"
            )
        return number

    def word(self) -> str:
        end = self._data.find(b"\0", self._at, self._at + 4096)
        if end < 0:
            raise SldError("a name without an end; copy the file again")
        out = self._data[self._at : end].decode()
        self._at = end + 1
        return out

    def end(self) -> None:
        if self._at != len(self._data):
            raise SldError(
                f"{len(self._data) - self._at} bytes more than it says it holds; copy the file "
                "again"
            )


def _cameras_bin(path: Path) -> list[tuple[int, Calibration]]:
    data, out = _Bytes(path), []
    head = [("id", "<u4"), ("model", "<i4"), ("width", "<u8"), ("height", "<u8")]
    for _ in range(data.count()):
        ((number, model, width, height),) = data.take(head).tolist()
        name = NUMBERS.get(model, f"number {model}")
        _, focals, count, _ = MODELS.get(name, (0, 0, 0, ""))
        values = data.take("<f8", focals + 2 + count).tolist()
        out.append((number, _camera(number, name, width, height, values)))
    data.end()
    return out


def _images_bin(path: Path) -> list[StoredImage]:
    data, out = _Bytes(path), []
    for _ in range(data.count()):
        ((_, pose, camera),) = data.take(
            [("id", "<u4"), ("pose", "<f8", 7), ("camera", "<u4")]
        ).tolist()
        out.append(_image(data.word(), camera, pose))
        data.take([("xy", "<f8", 2), ("point", "<i8")], data.count())  # features: not used
    data.end()
    return out


def _lines(path: Path) -> Iterator[str]:
    return (line for line in read_text(path, MAX_BYTES).split("\n") if not line.startswith("#"))


def _cameras_txt(path: Path) -> list[tuple[int, Calibration]]:
    out = []
    for line in _lines(path):
        if line.strip():
            number, model, width, height, *values = line.split()
            numbers = [float(value) for value in values]
            out.append((int(number), _camera(int(number), model, int(width), int(height), numbers)))
    return out


def _images_txt(path: Path) -> list[StoredImage]:
    """Two lines an image; the second, of its features, may be empty."""
    lines, out = _lines(path), []
    for line in lines:
        if not line.strip():
            continue
        words, features = line.split(None, 9), next(lines, None)
        if len(words) != 10 or features is None:
            raise SldError(
                f"{line[:60]!r}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a "
                "line of features"
            )
        pose = [float(word) for word in words[1:8]]
        out.append(_image(words[9].rstrip(), int(words[8]), pose))
    return out
