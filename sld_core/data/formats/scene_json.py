"""`scene.json`: what the layout of Indoor-6 has no place for, beside its files.

It holds whether the scene is metric, the name of the world frame, and of each frame the exact
camera (the layout has one focal length), pose (the layout holds its inverse), name, session, stamp
and source. It also lists the files of the data set: they, and no others, may be replaced by the
next one. While a data set is being moved in, "complete" is false."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sld_core.data.formats.plain_files import IMAGE_ENDING, MAX_TEXT_BYTES
from sld_core.files import read_text
from sld_core.stages import MARK
from sld_core.types import Camera, Frame, SldError

NAME, FORMAT, VERSION = "scene.json", "sld scene data", 1
OURS = re.compile(
    r"image-[0-9]{6}\.(color\.jpg|intrinsics\.txt|pose\.txt|depth\.png)|train_test_val\.pkl|"
    r"(landmarks|visibility|unknown)-[0-9]+\.txt"
)
MAX_LABEL = 300  # characters


class Damaged(SldError):
    """What was to be a scene.json of ours has been cut short or the like, and holds nothing of
    use."""


@dataclass(frozen=True)
class StoredScene:
    """The frames, with paths in their folder, in the order of the file and of the columns of
    visibility."""

    frames: tuple[Frame, ...]
    metric: bool
    world_frame: str
    landmark_count: int


def to_text(
    stems: list[str],
    frames: tuple[Frame, ...],
    metric: bool,
    world_frame: str,
    landmark_count: int,
    files: list[str],
) -> str:
    """The JSON text; `stems` are the names of the frames' files without ending."""
    cameras = list(dict.fromkeys(f.camera for f in frames))
    number = {camera: i for i, camera in enumerate(cameras)}
    rows = [
        {
            "file": stem,
            "name": f.name,
            "camera": number[f.camera],
            "depth": f.depth_path is not None,
            "session": f.session,
            "stamp_ns": int(f.stamp_ns),
            "source": f.source,
            "world_from_camera": np.asarray(f.T_world_camera, float)[:3].tolist(),
        }
        for stem, f in zip(stems, frames)
    ]
    return (
        json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "complete": True,
                "metric": bool(metric),
                "world_frame": world_frame,
                "landmarks": landmark_count,
                "cameras": [dataclasses.asdict(c) for c in cameras],
                "files": files,
                "frames": rows,
            },
            indent=1,
            allow_nan=False,
        )
        + "\n"
    )


def incomplete_text(files: list[str]) -> str:
    """What stands in place of `to_text` while files are moved in."""
    return (
        json.dumps(
            {"format": FORMAT, "version": VERSION, "complete": False, "files": files}, indent=1
        )
        + "\n"
    )


def read_scene_json(folder: Path) -> StoredScene | None:
    """None where there is no scene.json; SldError where it is damaged, of another version or not
    complete."""
    values = _values(folder)
    path = folder / NAME
    if values is None:
        return None
    if values.get("complete") is not True:
        raise SldError(
            f"{folder}: a half-written data set (the writing was interrupted); write it again"
        )
    try:
        cameras = [_camera(c) for c in _typed(values, "cameras", list)]
        frames = tuple(_frame(row, cameras, folder) for row in _typed(values, "frames", list))
        world_frame = checked_label(_typed(values, "world_frame", str), "world_frame")
        stored = StoredScene(
            frames, _typed(values, "metric", bool), world_frame, _typed(values, "landmarks", int)
        )
    except SldError as error:
        raise SldError(f"{path}: {error}") from None
    for what, names in (
        ("file", [f.image_path for f in frames]),
        ("name", [f.name for f in frames]),
    ):
        if len(set(names)) != len(names):
            raise SldError(f"{path}: the same {what} comes twice")
    return stored


def listed_files(folder: Path) -> set[str]:
    """The files that an earlier data set of ours left in `folder`, whether whole or not; none where
    there is no scene.json.

    Names that no data set of ours has are left out: what is listed may be deleted."""
    values = _values(folder)
    files = values.get("files") if values else []
    if not isinstance(files, list):
        raise Damaged(f"{folder / NAME}: files: expected a list of names")
    return {name for name in files if isinstance(name, str) and OURS.fullmatch(name)}


def own_files(folder: Path) -> set[str]:
    """The files of `folder` that the next data set may replace: those listed. In the folder of a
    map whose scene.json is missing, damaged or not complete, all that have a name of ours: nobody
    else writes there."""
    is_map = (folder / MARK).exists()
    try:
        if not is_map or (_values(folder) or {}).get("complete") is True:
            return listed_files(folder)
    except Damaged:
        if not is_map:
            raise
    return {path.name for path in folder.iterdir() if OURS.fullmatch(path.name)}


def depth_is_metric(folder: Path) -> bool:
    """Whether depth images in `folder` can be millimetres: not in a data set of ours without scale,
    nor in a map that cannot tell."""
    try:
        values = _values(folder)
    except SldError:  # damaged, or of somebody else
        values = None
    return values.get("metric") is True if values else not (folder / MARK).exists()


def _values(folder: Path) -> dict | None:
    path = folder / NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        values = json.loads(read_text(path, MAX_TEXT_BYTES), parse_constant=_refuse_constant)
    except SldError as error:
        raise Damaged(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{path}: not readable ({str(error).splitlines()[0][:100]}); write the data set "
            "again into another folder"
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SldError(f"{path}: is not of a data set of sld; choose another folder")
    if values.get("version") != VERSION:
        raise SldError(
            f"{path}: version {str(values.get('version'))[:20]}, this sld reads version "
            f"{VERSION}; install a matching sld"
        )
    return values


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def _typed(values, key: str, kind: type):
    if not isinstance(values, dict) or type(values.get(key)) is not kind:
        raise SldError(
            f"{key}: expected {kind.__name__}, got "
            f"{repr(values.get(key) if isinstance(values, dict) else values)[:40]}"
        )
    return values[key]


def checked_label(value, what: str) -> str:
    """`value` if it is a short text without line breaks and the like."""
    if (
        not isinstance(value, str)
        or len(value) > MAX_LABEL
        or not all(c.isprintable() for c in value)
    ):
        raise SldError(
            f"{what} {repr(value)[:60]}: expected up to {MAX_LABEL} printable characters"
        )
    return value


def checked_path(value, what: str) -> str:
    """`value` if it is a label that, used as the name of a file, leads nowhere else: stages name
    their files after frames."""
    parts = checked_label(value, what).split("/")
    if "" in parts or ".." in parts or "." in parts:
        raise SldError(
            f"{what} {value[:60]!r}: expected a name, or folders and a name, that lead out of "
            "nothing"
        )
    return value


def _camera(values) -> Camera:
    sides = [_typed(values, key, int) for key in ("width", "height")]
    return Camera(*sides, *(_number(values.get(key), key) for key in ("fx", "fy", "cx", "cy")))


def _number(value, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise SldError(f"{what} {repr(value)[:40]}: expected a number")
    return float(value)


def _frame(row, cameras: list[Camera], folder: Path) -> Frame:
    stem, camera, stamp = (
        _typed(row, "file", str),
        _typed(row, "camera", int),
        _typed(row, "stamp_ns", int),
    )
    if not OURS.fullmatch(stem + IMAGE_ENDING):
        raise SldError(
            f"{stem[:60]!r} is no name of an image here; expected one like image-000000, "
            "without folders"
        )
    if not 0 <= camera < len(cameras):
        raise SldError(f"{stem}: camera {str(camera)[:20]}; there are {len(cameras)}")
    if not -(2**63) <= stamp < 2**63:
        raise SldError(f"{stem}: stamp_ns of over 64 bits")
    depth_path = folder / f"{stem}.depth.png" if _typed(row, "depth", bool) else None
    return Frame(
        checked_path(_typed(row, "name", str), "name"),
        folder / (stem + IMAGE_ENDING),
        cameras[camera],
        _pose(row, stem),
        depth_path,
        stamp,
        checked_label(_typed(row, "session", str), "session"),
        _typed(row, "source", str),
    )


def _pose(row, stem: str) -> np.ndarray:
    rows = _typed(row, "world_from_camera", list)
    if len(rows) != 3 or not all(type(r) is list and len(r) == 4 for r in rows):
        raise SldError(f"{stem}: world_from_camera: expected 3x4 numbers")
    return np.vstack(
        [
            np.array([[_number(v, f"{stem}: world_from_camera") for v in r] for r in rows]),
            [0, 0, 0, 1],
        ]
    )
