"""Folders of frames: frame-NNNNNN.color.jpg, .pose.txt (4x4 camera to world), optional .depth.png,
one camera-intrinsics.txt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sld_core.camera.calibration import check_size
from sld_core.camera.encodings import encoded_size
from sld_core.files import read_text
from sld_core.types import Camera, Frame, SldError

MAX_LIST_BYTES = 50 * 10**6


def read_frames(folder: Path, list_path: Path | None = None) -> list[Frame]:
    """The frames that `list_path` names (one a line, without extension, relative to `folder`), or
    all of the folder.

    Raises SldError that names the first file that is missing or cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of frames")
    names = _read_names(folder, list_path) if list_path else _all_names(folder)
    if not names:
        raise SldError(
            f"{list_path or folder}: names no frames; expected frame-NNNNNN.color.jpg files"
        )
    cameras: dict[tuple[int, int], Camera] = {}
    frames = []
    for name in names:
        image_path = _image_path(folder, name)
        size = image_size(image_path)
        camera = cameras.get(size) or cameras.setdefault(
            size, read_intrinsics(folder / "camera-intrinsics.txt", *size)
        )
        depth_path = folder / f"{name}.depth.png"
        frames.append(
            Frame(
                name,
                image_path,
                camera,
                read_pose(folder / f"{name}.pose.txt"),
                depth_path if depth_path.is_file() else None,
                session=str(Path(name).parent),
            )
        )
    return frames


def _read_names(folder: Path, list_path: Path) -> list[str]:
    names = read_text(Path(list_path), MAX_LIST_BYTES, "a list of names").split()
    duplicates = len(names) - len(set(names))
    if duplicates:
        raise SldError(f"{list_path}: names {duplicates} frames twice")
    for name in names:
        if len(name) > 200 or not name.isprintable():
            raise SldError(f"{list_path}: {name[:40]!r}… is no name of a frame")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise SldError(f"{list_path}: {name!r} leads out of {folder}")
    return names


def _all_names(folder: Path) -> list[str]:
    paths = sorted([*folder.rglob("*.color.jpg"), *folder.rglob("*.color.png")])
    return [str(p.relative_to(folder))[: -len(".color.jpg")] for p in paths if p.is_file()]


def _image_path(folder: Path, name: str) -> Path:
    for ending in (".color.jpg", ".color.png"):
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    raise SldError(
        f"{folder / name}.color.jpg: no such image; frames are named without extension, "
        f"relative to {folder}"
    )


def read_intrinsics(path: Path, width: int, height: int) -> Camera:
    """The camera of a 3x3 matrix in a text file (OpenCV convention, pixel centres at integers)."""
    K = _read_matrix(Path(path), (3, 3))
    check_size(K, width, height, path)
    return Camera.from_opencv(width, height, K)


def read_pose(path: Path) -> np.ndarray:
    """4x4 camera-to-world transform from a text file; SldError when it is not a rigid one."""
    T = _read_matrix(path, (4, 4))
    R = T[:3, :3]
    if (
        np.abs(R @ R.T - np.eye(3)).max() > 1e-2
        or np.linalg.det(R) < 0
        or np.abs(T[3] - [0, 0, 0, 1]).max() > 1e-6
    ):
        raise SldError(f"{path}: not a rigid 4x4 transform (camera to world, last row 0 0 0 1)")
    U, _, Vt = np.linalg.svd(R)  # text files round: back to a rotation
    T[:3, :3] = U @ Vt
    return T


def _read_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    text = read_text(path)
    try:
        values = np.array([float(v) for v in text.split()])
    except ValueError as error:
        raise SldError(f"{path}: {error}; expected {shape[0]}x{shape[1]} numbers") from None
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise SldError(
            f"{path}: {values.size} numbers ({np.isfinite(values).sum()} finite); expected "
            f"{shape[0]}x{shape[1]} finite ones"
        )
    return values.reshape(shape)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a JPEG or PNG from its header alone, without decoding it."""
    try:
        with open(path, "rb") as file:
            return encoded_size(file)
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    except SldError as error:
        raise SldError(f"{path}: {error}") from None
