"""A Reconstruction on disk: reconstruction.npz, with the frames as JSON inside."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from sld_core.data.frame_json import frames_from_dict, frames_to_dict
from sld_core.types import Reconstruction, SldError

FILE = "reconstruction.npz"
ARRAYS = ("points_N3", "error_px_N", "obs_point_M", "obs_frame_M", "obs_xy_M2")


def write_reconstruction(folder: Path, reconstruction: Reconstruction) -> None:
    """Paths of images are stored relative to `folder`, so that a map can be moved as a whole."""
    frames = json.dumps(frames_to_dict(reconstruction.frames, folder))
    arrays = {name: getattr(reconstruction, name) for name in ARRAYS}
    temporary = folder / f"new-{FILE}"
    np.savez(temporary, frames=frames, **arrays)
    temporary.replace(folder / FILE)


def read_reconstruction(folder: Path) -> Reconstruction:
    """What `write_reconstruction` wrote."""
    data = read_arrays(folder / FILE)
    try:
        frames = frames_from_dict(json.loads(str(data["frames"])), folder)
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
