"""A Reconstruction on disk: reconstruction.npz, with the frames as JSON inside."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from sld_core.types import Camera, Frame, Reconstruction, SldError

FILE = "reconstruction.npz"
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


def _joined(folder: Path, relative: str) -> Path:
    return Path(os.path.normpath(folder / relative))
