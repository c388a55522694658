"""What stages leave in a map's work folder, read and written; a Reconstruction is
reconstruction.npz, with the frames as JSON inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sld_core import stages
from sld_core.data.formats.scene_json import NAME, listed_files, read_scene_json
from sld_core.data.frame_folder import image_size
from sld_core.data.frame_set import read_frame_set
from sld_core.types import Camera, Frame, Landmarks, Reconstruction, SldError

FILE, REPORT, DEPTH = "reconstruction.npz", "report.html", ".depth.png"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
ARRAYS = ("points_N3", "error_px_N", "obs_point_M", "obs_frame_M", "obs_xy_M2")


def write_reconstruction(folder: Path, reconstruction: Reconstruction) -> None:
    """Paths of images are stored relative to `folder`, so that a map can be moved as a whole."""
    frames = [
        asdict(replace(f, T_world_camera=None))
        | {
            "image_path": os.path.relpath(f.image_path, folder),
            "depth_path": os.path.relpath(f.depth_path, folder) if f.depth_path else None,
        }
        for f in reconstruction.frames
    ]
    arrays = {name: getattr(reconstruction, name) for name in ARRAYS}
    temporary = folder / f"new-{FILE}"
    np.savez(
        temporary,
        frames=json.dumps(frames),
        T_world_camera=np.stack([f.T_world_camera for f in reconstruction.frames]),
        **arrays,
    )
    temporary.replace(folder / FILE)


def read_reconstruction(folder: Path) -> Reconstruction:
    """What `write_reconstruction` wrote."""
    data = read_arrays(folder / FILE)
    try:
        entries, poses = json.loads(str(data["frames"])), data["T_world_camera"]
        frames = tuple(_frame(folder, entry, T) for entry, T in zip(entries, poses, strict=True))
        return Reconstruction(frames, *(data[name] for name in ARRAYS))
    except (ValueError, KeyError, TypeError) as error:
        raise SldError(
            f"{folder / FILE}: cannot be read ({error}); delete {folder} and run the stage again"
        ) from None


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file of a stage; SldError where these names are not among them."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names or data}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise SldError(
            f"{path}: cannot be read ({error}); delete {path.parent} and run the stage again"
        ) from None


def _frame(folder: Path, entry: dict, T_world_camera: np.ndarray) -> Frame:
    depth = entry["depth_path"]
    return Frame(
        **entry
        | {
            "camera": Camera(**entry["camera"]),
            "image_path": _joined(folder, entry["image_path"]),
            "depth_path": _joined(folder, depth) if depth else None,
            "T_world_camera": T_world_camera,
        }
    )


def _placed(folder: Path) -> Reconstruction:
    reconstruction = read_reconstruction(folder)
    for path in (f.image_path for f in reconstruction.frames):
        if not path.is_file():
            raise SldError(f"{path}: no such image; delete {folder} and run the stage again")
    return reconstruction


def _chosen(folder: Path) -> tuple[Landmarks, tuple[str, ...]]:
    data = read_arrays(folder / "landmarks.npz", "xyz_L3", "point_L", "split_F")
    return Landmarks(data["xyz_L3"], data["point_L"]), tuple(data["split_F"].tolist())


def _depths(folder: Path) -> dict[str, Path]:
    """The depth images by name of their frame, none where the source is none. Headers and ends are
    looked at, not the pixels."""
    done = stages.read_record(folder)
    if done is None:
        raise SldError(
            f"{folder / stages.RECORD}: cannot be read; delete {folder} and run the stage again"
        )
    if done.found["depth"]["source"] == "none":
        return {}
    found = {
        path.relative_to(folder).as_posix().removesuffix(DEPTH): path
        for path in sorted(folder.rglob(f"*{DEPTH}"))
    }
    if len(found) != done.found["depth"]["frames"]:
        raise SldError(
            f"{folder}: holds {len(found)} of {done.found['depth']['frames']} depth images; "
            "run the stage again"
        )
    for path in found.values():
        image_size(path)
        with open(path, "rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            if file.read() != PNG_END:
                raise SldError(f"{path}: ends too early; delete {folder} and run the stage again")
    return found


def _dataset(folder: Path) -> None:
    """What this stage writes lies in the map itself, two folders up."""
    output = folder.parents[1]
    if read_scene_json(output) is None:
        raise SldError(f"{output / NAME}: no such file")
    for path in (output / name for name in (*sorted(listed_files(output)), REPORT)):
        if not path.exists():
            raise SldError(f"{path}: no such file")


def _joined(folder: Path, relative: str) -> Path:
    return Path(os.path.normpath(folder / relative))


# what a stage leaves for later ones, read from its folder; SldError where that is damaged
READ: dict[str, Callable[[Path], Any]] = {
    "frames": lambda folder: read_frame_set(folder / "images"),
    "sfm": _placed,
    "metric": read_reconstruction,
    "depth": _depths,
    "landmarks": _chosen,
    "dataset": _dataset,
    "labels": lambda folder: read_arrays(folder / "labels.npz", "visibility_FL")["visibility_FL"],
}
