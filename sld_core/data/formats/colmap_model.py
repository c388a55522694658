"""A Reconstruction as a folder in COLMAP's layout (cameras, images, points3D, rigs, frames)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.data.formats.whole_folder import whole_folder
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

log = logging.getLogger(__name__)

FILES = tuple(
    f"{name}.{ending}"
    for name in ("cameras", "images", "points3D", "rigs", "frames")
    for ending in ("bin", "txt")
)


def write_model(folder: Path, reconstruction: Reconstruction, images: Path | None = None) -> None:
    """Write the binary model; an earlier one in `folder` is replaced, and nothing else.

    Images are named relative to `images` (default: the folder that the names of the frames start
    from), so that both can be moved. Frames without a pose are left out; what a model has no place
    for is lost: stamps, sources, sessions that are no folders."""
    frames = [f for f in reconstruction.frames if f.T_world_camera is not None]
    if not frames:
        raise SldError(f"{folder}: no frame has a pose; expected at least one")
    if len(frames) < len(reconstruction.frames):
        log.warning(
            "%d frames without a pose are left out of %s",
            len(reconstruction.frames) - len(frames),
            folder,
        )
    root = Path(images) if images else _root(frames)
    names = [_relative_name(f.image_path, root) for f in frames]
    model = _model(reconstruction, frames, names)
    with whole_folder(folder, FILES) as staged:
        model.write_binary(staged)


def _root(frames: Sequence[Frame]) -> Path:
    """The folder that every frame's name is relative to, else the deepest that holds all images."""
    roots = {
        f.image_path.parents[len(Path(f.name).parts) - 1]
        for f in frames
        if len(Path(f.name).parts) <= len(f.image_path.parents)
    }
    if len(roots) == 1:
        root = roots.pop()
        if all(f.image_path.relative_to(root).as_posix().startswith(f.name + ".") for f in frames):
            return root
    return Path(os.path.commonpath([f.image_path.parent.absolute() for f in frames]))


def _relative_name(path: Path, root: Path) -> str:
    if not path.absolute().is_relative_to(root.absolute()):
        raise SldError(
            f"{path}: lies outside of {root}; expected all images of a model in one folder"
        )
    name = path.absolute().relative_to(root.absolute()).as_posix()
    if ".." in name.split("/") or not name.isprintable():
        raise SldError(f"{path}: a name that a model cannot hold; rename the file")
    return name


def _model(reconstruction: Reconstruction, frames: list[Frame], names: list[str]):
    model = pycolmap.Reconstruction()
    cameras = {c: i + 1 for i, c in enumerate(dict.fromkeys(f.camera for f in frames))}
    for c, number in cameras.items():
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=number,
                model="PINHOLE",
                width=c.width,
                height=c.height,
                params=[c.fx, c.fy, c.cx, c.cy],
            )
        )
    image_of = {id(f): i + 1 for i, f in enumerate(frames)}
    image_F = np.array([image_of.get(id(f), 0) for f in reconstruction.frames])
    image_M = image_F[reconstruction.obs_frame_M]
    slot_M = np.zeros(len(image_M), int)  # of each observation among those of its image
    for f, name in zip(frames, names):
        number = image_of[id(f)]
        own = np.flatnonzero(image_M == number)
        slot_M[own] = np.arange(len(own))
        image = pycolmap.Image(
            name=name,
            camera_id=cameras[f.camera],
            image_id=number,
            keypoints=np.asarray(reconstruction.obs_xy_M2, float)[own].reshape(-1, 2),
        )
        model.add_image_with_trivial_frame(
            image, pycolmap.Rigid3d(geometry.invert(f.T_world_camera)[:3])
        )
    _add_points(model, reconstruction, image_M, slot_M)
    return model


def _add_points(
    model, reconstruction: Reconstruction, image_M: np.ndarray, slot_M: np.ndarray
) -> None:
    count = len(reconstruction.points_N3)
    starts = np.searchsorted(reconstruction.obs_point_M, np.arange(count + 1))
    for k in range(count):
        track = pycolmap.Track()
        for m in range(starts[k], starts[k + 1]):
            if image_M[m]:
                track.add_element(int(image_M[m]), int(slot_M[m]))
        number = model.add_point3D(
            np.asarray(reconstruction.points_N3[k], float), track, np.full(3, 128, np.uint8)
        )
        model.point3D(number).error = float(reconstruction.error_px_N[k])
