"""COLMAP model folders (cameras, images, points3D; binary or text) of pinhole cameras <->
Reconstruction.

Models are written by pycolmap, with its rigs and frames, and read by us: its reader takes truncated
files for whole ones, and others make it ask for any amount of memory, or never end (pycolmap
4.2.1)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.data.formats.colmap_files import StoredModel, read_files
from sld_core.data.formats.whole_folder import whole_folder
from sld_core.data.frame_folder import image_size
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

log = logging.getLogger(__name__)

FILES = tuple(
    f"{name}.{ending}"
    for name in ("cameras", "images", "points3D", "rigs", "frames")
    for ending in ("bin", "txt")
)
IMAGE_ENDINGS = (".color.jpg", ".color.png")


def write_model(
    folder: Path, reconstruction: Reconstruction, images: Path | None = None, text: bool = False
) -> None:
    """Write the model; an earlier one in `folder` is replaced, and nothing else.

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
        model.write_text(staged) if text else model.write_binary(staged)


def read_model(folder: Path, images: Path) -> Reconstruction:
    """The model of a folder, whose images lie in `images`; frames in order of image ids, points in
    order of theirs.

    SldError names the file that is damaged, the camera that is no pinhole, the image that is
    missing or of another size, the name that leads out of `images`. Session: the image's folder; a
    NAME.depth.png beside the image is its depth."""
    folder, images = Path(folder), Path(images)
    model = read_files(folder)
    order = sorted(model.images)
    frames = tuple(_frame(folder, images, model, i) for i in order)
    names = [f.name for f in frames]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise SldError(
            f"{folder}: two images are named {repeated}; expected names that differ by more "
            "than their ending"
        )
    return Reconstruction(
        frames, model.points_N3, model.error_px_N, *_observations(folder, model, order)
    )


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


def _frame(folder: Path, images: Path, model: StoredModel, number: int) -> Frame:
    image = model.images[number]
    path = images / image.name
    if (
        not image.name.isprintable()
        or len(image.name) > 1000
        or ".." in Path(image.name).parts
        or Path(image.name).is_absolute()
    ):
        raise SldError(
            f"{folder}: image name {image.name[:60]!r} leads out of {images}; expected a name "
            "relative to it"
        )
    camera = model.cameras.get(image.camera)
    if camera is None:
        raise SldError(
            f"{folder}: image {image.name} names camera {image.camera}, which is not there; is "
            "the model whole?"
        )
    size = image_size(path)
    if size != (camera.width, camera.height):
        raise SldError(
            f"{path}: the image is {size[0]}x{size[1]} but its camera is "
            f"{camera.width}x{camera.height}; expected the images "
            "that the model was made from"
        )
    ending = next((e for e in IMAGE_ENDINGS if image.name.endswith(e)), Path(image.name).suffix)
    name = image.name[: len(image.name) - len(ending)]
    depth_path = images / f"{name}.depth.png"
    parent = str(Path(name).parent)
    return Frame(
        name,
        path,
        camera,
        image.T_world_camera,
        depth_path if depth_path.is_file() else None,
        session="" if parent == "." else parent,
    )


def _observations(
    folder: Path, model: StoredModel, order: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """obs_point_M, obs_frame_M, obs_xy_M2; SldError where a track names an image or a feature that
    is not there."""
    counts = np.array([len(model.images[i].xy_K2) for i in order], int)
    first = np.concatenate([[0], np.cumsum(counts)])
    frame_M = np.searchsorted(order, model.track_image_M)
    known = frame_M < len(order)
    known[known] = np.array(order, np.int64)[frame_M[known]] == model.track_image_M[known]
    if not known.all():
        raise SldError(
            f"{folder}: a point is seen in image {model.track_image_M[~known][0]}, which is "
            "not there; is the model whole?"
        )
    outside = (model.track_feature_M < 0) | (model.track_feature_M >= counts[frame_M])
    if outside.any():
        raise SldError(
            f"{folder}: a point is feature {model.track_feature_M[outside][0]} of an image of "
            f"{counts[frame_M[outside][0]]}; "
            "is the model whole?"
        )
    xy = np.concatenate([np.zeros((0, 2)), *(model.images[i].xy_K2 for i in order)])
    return model.track_point_M, frame_M, xy[first[frame_M] + model.track_feature_M]
