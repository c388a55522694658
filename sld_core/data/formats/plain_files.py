"""The text files of the layout of Indoor-6 and the paper, with one function to write and one to
read each.

Lengths are metres, pixels have their origin in the corner of the image (as in COLMAP and in
`Camera`). Numbers read back equal, to the last bit. Counts are compared with the file before memory
is taken for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.data.pose_files import read_matrix, rigid
from sld_core.files import read_text
from sld_core.types import Camera, Landmarks, SldError

MAX_TEXT_BYTES = 512 * 2**20
MAX_LANDMARKS = 100_000
MAX_FRAMES = 1_000_000
IMAGE_ENDING = ".color.jpg"


@dataclass(frozen=True)
class Lens:
    """A line of intrinsics: one focal length, principal point (corner origin) and the radial
    distortion of COLMAP's SIMPLE_RADIAL camera: the normalised image point x lies at x (1 + kappa
    |x|^2)."""

    width: int
    height: int
    f: float
    px: float
    py: float
    kappa: float
    original_path: str


def checked_name(name, path: Path) -> str:
    """`name` if it is the name of one image file and nothing that leads anywhere else; `path` is
    the file that gave it."""
    if not isinstance(name, str):  # and not a list, which may repeat itself without end
        raise SldError(f"{path}: a {type(name).__name__} among the names; expected texts")
    if not re.fullmatch(r"[\w-][\w .+-]{0,180}\.color\.jpg", name):
        raise SldError(
            f"{path}: {name[:60]!r} is no name of an image here; expected one like "
            f"image-000000{IMAGE_ENDING}, without folders"
        )
    return name


def intrinsics_text(camera: Camera, original_path: str) -> str:
    """One line: W H f px py kappa original_path. The single f is the geometric mean of fx and fy;
    kappa is 0."""
    f = float(np.sqrt(camera.fx * camera.fy)) if camera.fx != camera.fy else camera.fx
    words = [
        camera.width,
        camera.height,
        *(repr(float(v)) for v in (f, camera.cx, camera.cy, 0.0)),
        " ".join(original_path.split()),
    ]
    return " ".join(map(str, words)).strip() + "\n"


def read_lens(path: Path) -> Lens:
    """The line of an intrinsics file; what follows the sixth number is the original path, which may
    hold spaces or be absent."""
    words = read_text(path).strip().split(None, 6)
    try:
        width, height = int(words[0]), int(words[1])
        f, px, py, kappa = (float(w) for w in words[2:6])
    except (ValueError, IndexError):
        raise SldError(
            f"{path}: {' '.join(words)[:80]!r}; expected one line: W H f px py kappa original_path"
        ) from None
    if not np.isfinite(kappa):
        raise SldError(f"{path}: kappa {kappa}: expected a finite number")
    try:
        Camera(width, height, f, f, px, py)
    except SldError as error:
        raise SldError(f"{path}: {error}") from None
    return Lens(width, height, f, px, py, kappa, " ".join(words[6:]).strip())


def pose_text(T_world_camera: np.ndarray) -> str:
    """Three lines [R|t], world to camera."""
    T = geometry.invert(np.asarray(T_world_camera, float))
    return "".join(" ".join(repr(float(v)) for v in row) + "\n" for row in T[:3])


def read_pose(path: Path) -> np.ndarray:
    """4x4 camera to world of a file with the 3x4 world to camera; SldError where it is no rigid
    transform."""
    T_camera_world = np.vstack([read_matrix(path, 3, 4), [0, 0, 0, 1]])
    return geometry.invert(rigid(T_camera_world, path))


def landmarks_text(landmarks: Landmarks) -> str:
    """The count, then a line "id x y z" for each, in order of choice."""
    lines = [
        f"{int(i)} " + " ".join(repr(float(v)) for v in xyz)
        for i, xyz in zip(landmarks.point_L, landmarks.xyz_L3)
    ]
    return "\n".join([str(len(lines)), *lines]) + "\n"


def read_landmarks(path: Path) -> Landmarks:
    """SldError where the count is not that of the lines, a number is none or not finite, or an id
    comes twice."""
    lines = [line.split() for line in read_text(path, MAX_TEXT_BYTES).splitlines() if line.strip()]
    if not lines or len(lines[0]) != 1 or not lines[0][0].isdecimal():
        raise SldError(
            f"{path}: begins with {' '.join(lines[0])[:40] if lines else ''!r}; expected the "
            "count of landmarks"
        )
    if lines[0][0] != str(len(lines) - 1) or len(lines) - 1 > MAX_LANDMARKS:
        raise SldError(
            f"{path}: says {lines[0][0][:20]} landmarks, holds {len(lines) - 1}; expected as "
            "many as it says, "
            f"at most {MAX_LANDMARKS}; is the file whole?"
        )
    try:
        ids = np.array([int(words[0]) for words in lines[1:]], np.int64)
        xyz_L3 = np.array([[float(w) for w in words[1:]] for words in lines[1:]], float).reshape(
            -1, 3
        )
    except (ValueError, IndexError, OverflowError):
        raise SldError(f"{path}: expected lines of four numbers: id x y z") from None
    if len(xyz_L3) != len(ids) or not np.isfinite(xyz_L3).all():
        raise SldError(
            f"{path}: {len(xyz_L3)} positions, {np.isfinite(xyz_L3).all(1).sum()} of them finite; "
            f"expected {len(ids)} lines: id x y z"
        )
    if len(np.unique(ids)) != len(ids) or (ids < 0).any():
        raise SldError(
            f"{path}: an id comes twice or is negative; expected one id for each landmark"
        )
    return Landmarks(xyz_L3, ids)


def flags_text(flags_LF: np.ndarray) -> str:
    """A line for each landmark: 0 or 1 for each image."""
    digits = np.full((len(flags_LF), 2 * flags_LF.shape[1]), ord(" "), np.uint8)
    digits[:, ::2] = ord("0") + flags_LF.astype(bool)
    digits[:, -1:] = ord("\n")
    return digits.tobytes().decode("ascii")


def read_flags(path: Path, count: int) -> np.ndarray:
    """(count, N) bool of a file with `count` lines of N numbers, each 0 or 1 in any notation."""
    lines = [line for line in read_text(path, MAX_TEXT_BYTES).splitlines() if line.strip()]
    if len(lines) != count:
        raise SldError(f"{path}: {len(lines)} lines; expected {count}, one for each landmark")
    width = len(lines[0].split()) if lines else 0
    if width > MAX_FRAMES:
        raise SldError(f"{path}: {width} numbers in a line; expected one for each image")
    out = np.zeros((count, width), bool)
    for number, line in enumerate(lines):
        out[number] = _flags(line, width, path, number)
    return out


def _flags(line: str, width: int, path: Path, number: int) -> np.ndarray:
    words = line.split()
    known = {"0": 0.0, "1": 1.0}
    try:
        values = np.array([known[w] if w in known else float(w) for w in words])
    except ValueError:
        values = np.array([np.nan])
    if len(values) != width or not np.isin(values, (0, 1)).all():
        raise SldError(
            f"{path}: line {number + 1} has {len(words)} numbers, "
            f"{np.isin(values, (0, 1)).sum()} of them 0 or 1; "
            f"expected {width} of 0 or 1, one for each image"
        )
    return values == 1
