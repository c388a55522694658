"""The files of a COLMAP model, binary or text, with every count checked against what the file
holds.

Layout: COLMAP's documentation, "Output Format". World to camera; quaternions w x y z; pixels from
the image's corner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.files import read_text
from sld_core.types import Camera, SldError

MAX_BYTES = 4 * 2**30
MODELS = {0: "SIMPLE_PINHOLE", 1: "PINHOLE"}
PARAMETERS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4}


@dataclass(frozen=True)
class StoredImage:
    """One registered image: `camera` is an id, `xy_K2` the pixels of its features."""

    name: str
    camera: int
    T_world_camera: np.ndarray
    xy_K2: np.ndarray


@dataclass(frozen=True)
class StoredModel:
    """Cameras and images by id; points in order of ids, with flat tracks: index of the point, id of
    the image, index of the feature."""

    cameras: dict[int, Camera]
    images: dict[int, StoredImage]
    points_N3: np.ndarray
    error_px_N: np.ndarray
    track_point_M: np.ndarray
    track_image_M: np.ndarray
    track_feature_M: np.ndarray


def read_files(folder: Path) -> StoredModel:
    """The model of a folder; SldError names the file that is missing or damaged."""
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of a COLMAP model")
    ending = "bin" if (folder / "cameras.bin").exists() else "txt"
    readers = {
        "bin": (_cameras_bin, _images_bin, _points_bin),
        "txt": (_cameras_txt, _images_txt, _points_txt),
    }[ending]
    parts = []
    for name, reader in zip(("cameras", "images", "points3D"), readers):
        path = folder / f"{name}.{ending}"
        try:
            parts.append(reader(path))
        except SldError as error:
            raise SldError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        except (ValueError, IndexError, OverflowError) as error:
            raise SldError(
                f"{path}: damaged ({str(error)[:100]}); expected a file of a COLMAP model"
            ) from None
    cameras, images, (ids, rows, tracks) = parts
    return StoredModel(
        _by_id(cameras, folder), _by_id(images, folder), *_in_order(ids, rows, tracks, folder)
    )


def _by_id(pairs: list[tuple[int, object]], folder: Path) -> dict:
    if not pairs or len(dict(pairs)) != len(pairs):
        raise SldError(
            f"{folder}: {len(pairs)} cameras or images with {len(dict(pairs))} ids; expected "
            "at least one, each with its own"
        )
    return dict(pairs)


def _in_order(ids: list[int], rows: list, tracks: list[np.ndarray], folder: Path):
    """Points in order of their ids; `rows` are x, y, z, error."""
    if len(set(ids)) != len(ids):
        raise SldError(f"{folder}: a point's id comes twice")
    order = sorted(range(len(ids)), key=lambda k: ids[k])
    table = np.array(rows, float).reshape(-1, 4)[order]
    if not np.isfinite(table).all():
        raise SldError(f"{folder}: points that are not finite")
    flat = np.concatenate([np.zeros((0, 2), np.int64), *(tracks[k] for k in order)])
    point_M = np.repeat(np.arange(len(ids)), [len(tracks[k]) for k in order])
    return table[:, :3], table[:, 3], point_M, flat[:, 0], flat[:, 1]


def _camera(model: str, width: int, height: int, values: list[float]) -> Camera:
    if model not in PARAMETERS:
        raise SldError(
            f"a camera of model {model}; expected PINHOLE or SIMPLE_PINHOLE; undistort it first "
            "(colmap image_undistorter)"
        )
    if len(values) != PARAMETERS[model]:
        raise SldError(
            f"a {model} camera with {len(values)} parameters; expected {PARAMETERS[model]}"
        )
    f = values if model == "PINHOLE" else [values[0], *values]
    return Camera(width, height, *map(float, f))


def _image(name: str, camera: int, pose: list[float], xy_K2: np.ndarray) -> StoredImage:
    w, x, y, z, *t = map(float, pose)
    if not np.isfinite([w, x, y, z, *t]).all() or not np.isfinite(xy_K2).all():
        raise SldError(f"image {name[:60]!r}: a pose or a feature that is not finite")
    T = geometry.make_transform(
        geometry.rotation_from_quaternion(np.array([x, y, z, w])), np.array(t)
    )
    return StoredImage(name, camera, geometry.invert(T), xy_K2)


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

    def count(self, least_bytes: int) -> int:
        """A count of things that take at least so many bytes each."""
        number = int(self.take("<u8")[0])
        if number > (len(self._data) - self._at) // least_bytes:
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


def _cameras_bin(path: Path) -> list[tuple[int, Camera]]:
    data, out = _Bytes(path), []
    for _ in range(data.count(24)):
        ((number, model, width, height),) = data.take(
            [("id", "<u4"), ("model", "<i4"), ("w", "<u8"), ("h", "<u8")]
        ).tolist()
        name = MODELS.get(model, f"number {model}")
        out.append(
            (
                number,
                _camera(name, width, height, data.take("<f8", PARAMETERS.get(name, 0)).tolist()),
            )
        )
    data.end()
    return out


def _images_bin(path: Path) -> list[tuple[int, StoredImage]]:
    data, out = _Bytes(path), []
    for _ in range(data.count(73)):
        ((number, pose, camera),) = data.take(
            [("id", "<u4"), ("pose", "<f8", 7), ("camera", "<u4")]
        ).tolist()
        name = data.word()
        features = data.take([("xy", "<f8", 2), ("point", "<i8")], data.count(24))
        out.append((number, _image(name, camera, pose, features["xy"].copy())))
    data.end()
    return out


def _points_bin(path: Path):
    data, ids, rows, tracks = _Bytes(path), [], [], []
    head = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8")])
    for _ in range(data.count(head.itemsize + 8)):
        ((number, xyz, _, error),) = data.take(head).tolist()
        ids.append(number)
        rows.append([*xyz, error])
        tracks.append(data.take("<u4", 2 * data.count(8)).reshape(-1, 2).astype(np.int64))
    data.end()
    return ids, rows, tracks


def _lines(path: Path) -> Iterator[str]:
    return (line for line in read_text(path, MAX_BYTES).split("\n") if not line.startswith("#"))


def _cameras_txt(path: Path) -> list[tuple[int, Camera]]:
    rows = [line.split() for line in _lines(path) if line.strip()]
    return [
        (int(number), _camera(model, int(w), int(h), [float(v) for v in values]))
        for number, model, w, h, *values in rows
    ]


def _images_txt(path: Path) -> list[tuple[int, StoredImage]]:
    """Two lines an image; the second, of its features, may be empty."""
    lines, out = _lines(path), []
    for line in lines:
        if not line.strip():
            continue
        words, features = line.rstrip("\r").split(None, 9), next(lines, None)
        if len(words) != 10 or features is None:
            raise SldError(
                f"{line[:60]!r}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a "
                "line of features"
            )
        xy_K2 = np.array([float(v) for v in features.split()]).reshape(-1, 3)[:, :2]
        out.append(
            (int(words[0]), _image(words[9], int(words[8]), [float(v) for v in words[1:8]], xy_K2))
        )
    return out


def _points_txt(path: Path):
    ids, rows, tracks = [], [], []
    for words in (line.split() for line in _lines(path) if line.strip()):
        ids.append(int(words[0]))
        rows.append([float(words[i]) for i in (1, 2, 3, 7)])
        tracks.append(np.array([int(w) for w in words[8:]], np.int64).reshape(-1, 2))
    return ids, rows, tracks
