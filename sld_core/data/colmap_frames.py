"""The registered images of a COLMAP model as candidates for frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sld_core.camera.undistortion import Undistortion
from sld_core.data import photos
from sld_core.data.formats.colmap_files import read_cameras, read_images
from sld_core.data.frame_selection import Candidate, Rejection
from sld_core.data.session_names import natural, session_labels
from sld_core.types import Progress, SldError


def candidates(
    model: Path,
    images: Path,
    metres_per_unit: float | None,
    progress: Callable[[Progress], None],
) -> Iterator[Candidate | Rejection]:
    """The images in natural order of their names, undistorted, with the model's poses; a session
    per subfolder of `images`. With `metres_per_unit` the poses are scaled to metres, and
    NAME.depth.png beside NAME.jpg is its depth. Images that are missing or damaged become
    Rejections."""
    if not images.is_dir():
        raise SldError(f"{images}: no such folder of images")
    cameras = read_cameras(model)
    stored = sorted(read_images(model), key=lambda image: natural(image.name))
    sessions = session_labels(_folder(image.name) for image in stored)
    lenses: dict[int, Undistortion] = {}
    for i, image in enumerate(stored):
        path = images / image.name
        if image.camera not in cameras:
            raise SldError(
                f"{model}: image {image.name} names camera {image.camera}, which is not there; is "
                "the model whole?"
            )
        if image.camera not in lenses:
            calibration = cameras[image.camera]
            size = calibration.width, calibration.height
            lenses[image.camera] = calibration.undistortion(*size)
        session, lens = sessions[_folder(image.name)], lenses[image.camera]
        T = image.T_world_camera
        T[:3, 3] *= metres_per_unit or 1.0
        try:
            yield from photos.photograph(
                images, path, session, lens, T, metres_per_unit is not None
            )
        except SldError as error:
            yield photos.rejection(images, path, error)
        progress(Progress("reading images", (i + 1) / len(stored)))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
