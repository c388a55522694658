"""Frames as JSON: the one form in which frame sets, reconstructions and data sets keep them.

Files are named relative to the folder of the JSON, so that the whole can be moved. What is read
was written by sld: it is checked for damage, not against hostile hands."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sld_core.camera.images import image_size
from sld_core.types import Camera, Frame, SldError


def frames_to_dict(frames: Sequence[Frame], folder: Path) -> dict[str, Any]:
    """Lists of "cameras" and "frames", ready for JSON in `folder`."""
    cameras = list(dict.fromkeys(f.camera for f in frames))
    number = {camera: i for i, camera in enumerate(cameras)}
    return {
        "cameras": [dataclasses.asdict(camera) for camera in cameras],
        "frames": [_to_dict(f, number[f.camera], folder) for f in frames],
    }


def frames_from_dict(content: dict[str, Any], folder: Path) -> tuple[Frame, ...]:
    """The frames of `frames_to_dict`, equal to the last bit; SldError where they are damaged."""
    try:
        cameras = [Camera(**camera) for camera in content["cameras"]]
        return tuple(_frame(entry, cameras, folder) for entry in content["frames"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SldError(f"damaged frames ({type(error).__name__}: {str(error)[:200]})") from None


def check_images(frames: Iterable[Frame]) -> None:
    """SldError names the first image that is missing, damaged or not of its camera's size, and the
    first depth image that is missing or damaged. Only headers are read."""
    for frame in frames:
        size = image_size(frame.image_path)
        if size != (frame.camera.width, frame.camera.height):
            raise SldError(
                f"{frame.image_path}: the image is {size[0]}x{size[1]} but its camera is "
                f"{frame.camera.width}x{frame.camera.height}"
            )
        if frame.depth_path is not None:
            image_size(frame.depth_path)


def _to_dict(frame: Frame, camera: int, folder: Path) -> dict[str, Any]:
    T, depth = frame.T_world_camera, frame.depth_path
    return {
        "name": frame.name,
        "image": os.path.relpath(frame.image_path, folder),
        "depth": None if depth is None else os.path.relpath(depth, folder),
        "camera": camera,
        "T_world_camera": None if T is None else np.asarray(T, float).tolist(),
        "stamp_ns": int(frame.stamp_ns),
        "session": frame.session,
        "source": frame.source,
    }


def _frame(entry: dict[str, Any], cameras: list[Camera], folder: Path) -> Frame:
    T, depth = entry["T_world_camera"], entry["depth"]
    return Frame(
        entry["name"],
        _joined(folder, entry["image"]),
        cameras[entry["camera"]],
        None if T is None else np.array(T, float).reshape(4, 4),
        None if depth is None else _joined(folder, depth),
        entry["stamp_ns"],
        entry["session"],
        entry["source"],
    )


def _joined(folder: Path, relative: str) -> Path:
    return Path(os.path.normpath(folder / relative))
