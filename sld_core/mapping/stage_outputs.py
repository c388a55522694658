"""What each stage of a map leaves for later ones, read from its folder; SldError where that is
damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sld_core import stages
from sld_core.camera.images import image_size
from sld_core.data.formats.scene_json import NAME, listed_files, read_scene_json
from sld_core.data.frame_set import read_frame_set
from sld_core.sfm.reconstruction_file import read_arrays, read_reconstruction
from sld_core.types import FrameSet, Landmarks, Reconstruction, SldError

DEPTH, REPORT = ".depth.png", "report.html"
LANDMARKS, LABELS = "landmarks.npz", "labels.npz"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_frames(folder: Path) -> FrameSet:
    return read_frame_set(folder / "images")


def read_sfm(folder: Path) -> Reconstruction:
    """The reconstruction, whose images must all be there."""
    reconstruction = read_reconstruction(folder)
    for frame in reconstruction.frames:
        if not frame.image_path.is_file():
            raise SldError(
                f"{frame.image_path}: no such image; delete {folder} and run the stage again"
            )
    return reconstruction


def read_depths(folder: Path) -> dict[str, Path]:
    """The depth images by the name of their frame; none where the source of depth is none. Their
    headers and ends are checked, not their pixels."""
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


def read_landmarks(folder: Path) -> tuple[Landmarks, tuple[str, ...]]:
    """The landmarks, and "train", "val" or "test" for each frame."""
    data = read_arrays(folder / LANDMARKS, "xyz_L3", "point_L", "split_F")
    return Landmarks(data["xyz_L3"], data["point_L"]), tuple(data["split_F"].tolist())


def read_labels(folder: Path) -> np.ndarray:
    """visibility_FL."""
    return read_arrays(folder / LABELS, "visibility_FL")["visibility_FL"]


def check_dataset(folder: Path) -> None:
    """The dataset itself lies two folders up, in the folder of the map."""
    output = folder.parents[1]
    if read_scene_json(output) is None:
        raise SldError(f"{output / NAME}: no such file")
    for path in (output / name for name in (*sorted(listed_files(output)), REPORT)):
        if not path.exists():
            raise SldError(f"{path}: no such file")
