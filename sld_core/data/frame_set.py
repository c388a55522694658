"""A frame set on disk: a folder of images (and depth images) with one frames.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sld_core.data.frame_folder import image_size
from sld_core.files import write_atomically
from sld_core.types import Camera, Frame, FrameSet, SldError

FILE, FORMAT = "frames.json", "sld frames 1"
MAX_BYTES = 256 * 2**20


def write_frame_set(folder: Path, frame_set: FrameSet) -> None:
    """Write `folder`/frames.json, atomically; the images and depth images must lie in the folder
    already."""
    folder = Path(folder)
    cameras: dict[Camera, int] = {}
    frames = [
        _frame_to_dict(folder, frame, cameras.setdefault(frame.camera, len(cameras)))
        for frame in frame_set.frames
    ]
    text = json.dumps(
        {
            "format": FORMAT,
            "intrinsics_known": frame_set.intrinsics_known,
            "world_frame": frame_set.world_frame,
            "world_z_up": frame_set.world_z_up,
            "cameras": [dataclasses.asdict(camera) for camera in cameras],
            "frames": frames,
            "rejected": frame_set.rejected,
        },
        indent=1,
    )
    write_atomically(folder / FILE, text.encode(errors="replace"))


def _frame_to_dict(folder: Path, frame: Frame, camera: int) -> dict:
    for path in (frame.image_path, frame.depth_path):
        if path is not None and Path(path).parent.resolve() != folder.resolve():
            raise ValueError(f"{path}: expected a file in {folder}")
    return {
        "name": frame.name,
        "image": frame.image_path.name,
        "depth": frame.depth_path.name if frame.depth_path else None,
        "camera": camera,
        "T_world_camera": None if frame.T_world_camera is None else frame.T_world_camera.tolist(),
        "stamp_ns": int(frame.stamp_ns),
        "session": frame.session,
        "source": frame.source,
    }


def read_frame_set(folder: Path) -> FrameSet:
    """What `write_frame_set` wrote; SldError in one line for the first thing that is missing,
    damaged or leads elsewhere."""
    folder = Path(folder)
    path = folder / FILE
    content = _read_json(path)
    try:
        if content.get("format") != FORMAT:
            raise SldError(f"format {content.get('format')!r:.40}; expected {FORMAT!r}")
        cameras = [Camera(**_numbers(camera)) for camera in _typed(content, "cameras", list)]
        frames = tuple(_frames(folder, _typed(content, "frames", list), cameras))
        rejected = _typed(content, "rejected", dict)
        if not all(isinstance(reason, str) for reason in rejected.values()):
            raise SldError("rejected: expected texts")
        world_frame = _text(content, "world_frame")
        return FrameSet(
            frames,
            _typed(content, "intrinsics_known", bool),
            world_frame,
            _typed(content, "world_z_up", bool),
            rejected,
        )
    except SldError as error:
        raise SldError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SldError(f"{path}: no frame set ({type(error).__name__}: {error})") from None


def _read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SldError(f"{path}: {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SldError(
            f"{path}: cannot be read ({error.strerror}); expected a folder that `sld map "
            "frames` wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SldError(f"{path}: damaged ({str(error)[:100]}); make the frames again") from None
    if not isinstance(content, dict):
        raise SldError(f"{path}: no frame set; make the frames again")
    return content


def _frames(folder: Path, entries: list, cameras: list[Camera]) -> Iterator[Frame]:
    names: set[str] = set()
    for entry in entries:
        name = _file_name(_text(entry, "name"))
        if name in names:
            raise SldError(f"frame {name!r}: named twice")
        names.add(name)
        try:
            yield _frame(folder, name, entry, cameras)
        except SldError as error:
            raise SldError(f"frame {name!r}: {error}") from None


def _frame(folder: Path, name: str, entry: dict, cameras: list[Camera]) -> Frame:
    index = _typed(entry, "camera", int)
    if not 0 <= index < len(cameras):
        raise SldError(f"camera {index}; expected one of {len(cameras)}")
    image_path = _existing(folder, _text(entry, "image"))
    size = image_size(image_path)
    if size != (cameras[index].width, cameras[index].height):
        raise SldError(
            f"image is {size[0]}x{size[1]} but its camera is "
            f"{cameras[index].width}x{cameras[index].height}"
        )
    depth_path = None if entry["depth"] is None else _existing(folder, _text(entry, "depth"))
    if depth_path is not None:
        image_size(depth_path)
    stamp_ns = _typed(entry, "stamp_ns", int)
    if not -(2**63) <= stamp_ns < 2**63:
        raise SldError("stamp_ns: expected nanoseconds in 64 bits")
    return Frame(
        name,
        image_path,
        cameras[index],
        _pose(entry["T_world_camera"]),
        depth_path,
        stamp_ns,
        _text(entry, "session"),
        _text(entry, "source"),
    )


def _pose(values) -> np.ndarray | None:
    if values is None:
        return None
    try:
        T = np.array(values, float)
    except (TypeError, ValueError):
        raise SldError("T_world_camera: expected 4x4 numbers") from None
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise SldError("T_world_camera: expected 4x4 finite numbers")
    R = T[:3, :3]
    if (
        np.abs(R @ R.T - np.eye(3)).max() > 1e-6
        or np.linalg.det(R) < 0
        or (T[3] != [0, 0, 0, 1]).any()
    ):
        raise SldError("T_world_camera: not a rigid transform")
    return T


def _existing(folder: Path, name: str) -> Path:
    path = folder / _file_name(name)
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise SldError(f"{name}: no such file in {folder}")
    return path


def _file_name(name: str) -> str:
    if (
        not name
        or name.startswith(".")
        or len(name) > 200
        or not name.isprintable()
        or "/" in name
        or "\\" in name
    ):
        raise SldError(f"{name[:40]!r}: expected the plain name of a file")
    return name


def _numbers(camera: dict) -> dict:
    if set(camera) != {"width", "height", "fx", "fy", "cx", "cy"} or any(
        type(v) not in (int, float) for v in camera.values()
    ):
        raise SldError("cameras: expected width, height, fx, fy, cx and cy, all numbers")
    return camera


def _text(entry: dict, key: str) -> str:
    text = _typed(entry, key, str)
    if len(text) > 4096:
        raise SldError(f"{key}: {len(text)} characters; expected at most 4096")
    return text


def _typed(entry: dict, key: str, kind: type):
    if key not in entry or type(entry[key]) is not kind:
        raise SldError(f"{key}: expected {kind.__name__}, got {entry.get(key)!r:.40}")
    return entry[key]
