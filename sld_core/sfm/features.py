"""SIFT features and their matches in COLMAP's database.

The same images, settings and seed fill the database alike, however many threads take part: images
get their numbers before the first feature is found (COLMAP would give them as threads finish, and
everything after goes by these numbers), and each pair draws its RANSAC samples from `seed`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sld_core.optional import pycolmap
from sld_core.types import Camera, Progress, SldError

CHUNK = 16  # images between two reports of progress; of pairs, CHUNK * the partners of each image
FEATURE_BYTES, MATCH_BYTES = 152, 16  # in the database; a match is stored before and after RANSAC


@dataclass(frozen=True)
class Lens:
    """The images that were taken through one lens, by their paths relative to the image folder."""

    camera: pycolmap.Camera
    names: tuple[str, ...]


def pinhole_lens(camera: Camera, names: Sequence[str]) -> Lens:
    """A calibrated lens without distortion."""
    return _lens("PINHOLE", camera, [camera.fx, camera.fy, camera.cx, camera.cy], names)


def guessed_lens(camera: Camera, names: Sequence[str]) -> Lens:
    """A lens with radial distortion to be estimated, beginning with `camera` as a guess."""
    return _lens("SIMPLE_RADIAL", camera, [camera.fx, camera.cx, camera.cy, 0.0], names)


def _lens(model: str, camera: Camera, params: list[float], names: Sequence[str]) -> Lens:
    lens = pycolmap.Camera(model=model, width=camera.width, height=camera.height, params=params)
    lens.has_prior_focal_length = True
    return Lens(lens, tuple(names))


def extract(
    database: Path,
    root: Path,
    lenses: Sequence[Lens],
    max_features: int,
    progress: Callable[[Progress], None],
) -> None:
    """Find features of all images below `root`; those that the database has already are kept."""
    check_room(database.parent, 0)
    _register(database, lenses)
    names = [name for lens in lenses for name in lens.names]
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = max_features
    for start in range(0, len(names), CHUNK):
        progress(Progress("finding features", start / len(names)))
        chunk = names[start : start + CHUNK]
        check_room(database.parent, 2 * len(chunk) * max_features * FEATURE_BYTES)
        pycolmap.extract_features(
            database,
            root,
            chunk,
            camera_mode=pycolmap.CameraMode.AUTO,
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )


def _register(database: Path, lenses: Sequence[Lens]) -> None:
    """Number the images 1, 2, 3, ... in the order given, all at once or not at all."""
    with pycolmap.Database.open(database) as db:
        if db.num_images():
            return
        with pycolmap.DatabaseTransaction(db):
            for lens in lenses:
                lens.camera.camera_id = db.write_camera(lens.camera)
                rig = pycolmap.Rig()
                rig.add_ref_sensor(lens.camera.sensor_id)
                rig_id = db.write_rig(rig)
                for name in lens.names:
                    image = pycolmap.Image(name=name, camera_id=lens.camera.camera_id)
                    image.image_id = db.write_image(image)
                    frame = pycolmap.Frame(rig_id=rig_id)
                    frame.add_data_id(image.data_id)
                    db.write_frame(frame)


def match(
    database: Path,
    pairs: Sequence[tuple[str, str]],
    partners: int,
    seed: int,
    progress: Callable[[Progress], None],
) -> None:
    """Match pairs of images and keep what fits one geometry; pairs that the database has matches
    of already are skipped. `partners`: about how many pairs an image is in."""
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = database.parent / "pairs.txt"
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = seed
    size = CHUNK * max(partners, 1)
    for start in range(0, len(pairs), size):
        progress(Progress("matching features", start / len(pairs)))
        chunk = pairs[start : start + size]
        check_room(database.parent, len(chunk) * MATCH_BYTES * 1000)
        pairing.match_list_path.write_text("".join(f"{a} {b}\n" for a, b in chunk))
        pycolmap.match_image_pairs(
            database,
            pairing_options=pairing,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )


def check_room(folder: Path, bytes_needed: int) -> None:
    """SldError where the disk of `folder` has less room. COLMAP writes from threads of its own, and
    a full disk there would end the process."""
    free = shutil.disk_usage(folder).free
    if free < max(bytes_needed, 2**20):
        raise SldError(
            f"{folder}: {free / 1e6:.0f} MB of disk space are free, and structure from motion "
            f"needs {max(bytes_needed, 2**20) / 1e6:.0f} MB for its next step; make room and run "
            "the same command again"
        )
