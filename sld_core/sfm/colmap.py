"""What the users of pycolmap share: quiet and repeatable runs, bundle adjustment, and COLMAP's
models as a Reconstruction."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core import geometry, stages
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

log = logging.getLogger(__name__)


@contextmanager
def errors_named(folder: Path) -> Iterator[None]:
    """What COLMAP, SQLite or the disk raise while structure from motion works in `folder`, as one
    SldError with the room on its disk. The log has the whole error (-v)."""
    try:
        with stages.explained(folder, "used"):
            yield
    except (RuntimeError, ValueError, sqlite3.Error) as error:
        # COLMAP raises ValueError where a folder is gone; any other is a mistake of ours
        if isinstance(error, SldError) or isinstance(error, ValueError) and folder.is_dir():
            raise
        log.info("%s", error, exc_info=True)
        reason = " ".join(str(error).split())[:200]
        raise SldError(
            f"{folder}: structure from motion failed ({reason}); {stages.room(folder)}"
        ) from None


def quiet(seed: int) -> None:
    """Keep pycolmap off the terminal and make its random choices repeatable. What it logs as an
    error, such as that there is no model, our own errors say better; with -v both are shown."""
    level = pycolmap.logging.Level
    shown = level.ERROR if log.isEnabledFor(logging.INFO) else level.FATAL
    pycolmap.logging.minloglevel = shown.value
    pycolmap.logging.logtostderr = True  # and no files in the temporary folder
    pycolmap.set_random_seed(seed)


def drop_if_damaged(database: Path) -> None:
    """Delete a database that cannot be read; an intact one of a killed run is kept."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        log.warning(
            "%s is damaged (%s): features and matches are found again",
            database,
            " ".join(found.split()),
        )
        for ending in ("", "-wal", "-shm", "-journal"):
            database.with_name(database.name + ending).unlink(missing_ok=True)


def pose_of(image: pycolmap.Image) -> np.ndarray:
    """T_world_camera (4x4) of a registered image."""
    return geometry.invert(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))


def registered(model: pycolmap.Reconstruction) -> dict[str, pycolmap.Image]:
    """The images of a model that have a pose, by name."""
    return {image.name: image for image in model.images.values() if image.has_pose}


def bundle_setup(
    model: pycolmap.Reconstruction, refine_lenses: bool, max_iterations: int
) -> tuple[pycolmap.BundleAdjustmentOptions, pycolmap.BundleAdjustmentConfig]:
    """Options and variables of a robust bundle adjustment of all images of `model`; the caller
    fixes the gauge."""
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = refine_lenses
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.solver_options.max_num_iterations = max_iterations
    options.ceres.solver_options.function_tolerance = 1e-5
    which = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(model.reg_image_ids()):
        which.add_image(image_id)
    return options, which


def read_model(model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame]) -> Reconstruction:
    """The registered images that `frame_of` names, in its order, and all points that they see.

    Observations are in the pixels of the frames' pinhole cameras: those of a lens with distortion
    are moved. Points are in the order of their first observation (frame, then x, then y), whatever
    numbers COLMAP gave them."""
    image_of = registered(model)
    names = [name for name in frame_of if name in image_of]
    index = {image_of[name].image_id: i for i, name in enumerate(names)}
    pixels = {
        image_of[name].image_id: _pinhole_pixels(image_of[name], model, frame_of[name])
        for name in names
    }
    tracks = []
    for point in model.points3D.values():
        seen = [
            (index[e.image_id], *pixels[e.image_id][e.point2D_idx])
            for e in point.track.elements
            if e.image_id in index
        ]
        if seen:
            tracks.append((sorted(seen), point.xyz, point.error))
    if not tracks:
        raise SldError(
            "no feature could be triangulated: the images lack texture, or the camera only "
            "turned on the spot, or the poses are not those of the camera (camera to world, metres)"
        )
    tracks.sort(key=lambda track: track[0])
    frames = tuple(
        replace(frame_of[name], T_world_camera=pose_of(image_of[name])) for name in names
    )
    observations_M3 = np.array([seen for track, _, _ in tracks for seen in track])
    log.info(
        "%d points from %d observations in %d frames",
        len(tracks),
        len(observations_M3),
        len(frames),
    )
    return Reconstruction(
        frames,
        points_N3=np.array([xyz for _, xyz, _ in tracks]),
        error_px_N=np.array([error for _, _, error in tracks]),
        obs_point_M=np.repeat(np.arange(len(tracks)), [len(track) for track, _, _ in tracks]),
        obs_frame_M=observations_M3[:, 0].astype(int),
        obs_xy_M2=observations_M3[:, 1:],
    )


def _pinhole_pixels(
    image: pycolmap.Image, model: pycolmap.Reconstruction, frame: Frame
) -> np.ndarray:
    """Keypoints (N, 2) of an image as the pinhole camera of its frame sees them."""
    xy = np.array([p.xy for p in image.points2D]).reshape(-1, 2)
    lens, camera = model.cameras[image.camera_id], frame.camera
    if lens.model_name == "PINHOLE" or not len(xy):
        return xy
    rays = np.asarray(lens.cam_from_img(xy))
    return rays * [camera.fx, camera.fy] + [camera.cx, camera.cy]
