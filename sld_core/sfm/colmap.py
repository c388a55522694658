"""What tracks with known poses and structure from motion have in common in their use of
pycolmap."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

log = logging.getLogger(__name__)

CHUNK = 16  # images or, times the partners of each, pairs between two signs of progress


def quiet(seed: int) -> None:
    """No chatter of pycolmap on the terminal, and its random choices repeatable. What it calls
    errors, such as that there is no model, our own error says in words that help; with -v both are
    there."""
    level = pycolmap.logging.Level
    pycolmap.logging.minloglevel = (
        level.ERROR if log.isEnabledFor(logging.INFO) else level.FATAL
    ).value
    pycolmap.logging.logtostderr = True  # and no files in the temporary folder
    pycolmap.set_random_seed(seed)


def drop_if_damaged(database: Path) -> None:
    """Features and matches that a killed run left are used; a database that cannot be read is begun
    anew."""
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


def bundle_setup(
    model: pycolmap.Reconstruction, refine_lenses: bool, max_iterations: int
) -> tuple[pycolmap.BundleAdjustmentOptions, pycolmap.BundleAdjustmentConfig]:
    """How and what a robust bundle adjustment of all images of `model` adjusts; the gauge is the
    caller's."""
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = refine_lenses
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.solver_options.max_num_iterations = max_iterations
    options.ceres.solver_options.function_tolerance = 1e-5
    which = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        which.add_image(image_id)
    return options, which


def read_model(model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame]) -> Reconstruction:
    """The registered images that `frame_of` names, in its order, with the model's poses, and all
    points as the pinhole cameras of those frames see them: observations in the pixels of a lens
    with distortion are moved to where a pinhole has them."""
    image_of = {
        image.name: image
        for image in model.images.values()
        if image.has_pose and image.name in frame_of
    }
    names = [name for name in frame_of if name in image_of]
    index = {image_of[name].image_id: i for i, name in enumerate(names)}
    pixels = {
        image_of[name].image_id: _pinhole_pixels(image_of[name], model, frame_of[name])
        for name in names
    }
    points, errors, observations = [], [], []
    for point in model.points3D.values():
        seen = [
            (len(points), index[e.image_id], *pixels[e.image_id][e.point2D_idx])
            for e in point.track.elements
            if e.image_id in index
        ]
        if seen:
            points.append(point.xyz)
            errors.append(point.error)
            observations += seen
    if not points:
        raise SldError(
            "no feature could be triangulated: the images lack texture, or the camera only "
            "turned on the spot, "
            "or the poses are not those of the camera (camera to world, metres)"
        )
    table = np.array(observations)
    frames = tuple(
        replace(frame_of[name], T_world_camera=pose_of(image_of[name])) for name in names
    )
    log.info("%d points from %d observations in %d frames", len(points), len(table), len(frames))
    return Reconstruction(
        frames,
        np.array(points),
        np.array(errors),
        table[:, 0].astype(int),
        table[:, 1].astype(int),
        table[:, 2:],
    )


def _pinhole_pixels(
    image: pycolmap.Image, model: pycolmap.Reconstruction, frame: Frame
) -> np.ndarray:
    xy = np.array([p.xy for p in image.points2D]).reshape(-1, 2)
    lens = model.cameras[image.camera_id]
    if lens.model_name == "PINHOLE" or not len(xy):
        return xy
    rays = lens.cam_from_img(xy)
    return np.asarray(rays) * [frame.camera.fx, frame.camera.fy] + [
        frame.camera.cx,
        frame.camera.cy,
    ]
