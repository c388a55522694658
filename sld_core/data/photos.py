"""Photographs in a folder, with the depth images, poses and intrinsics that lie beside them."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sld_core.camera.calibration import Calibration, Lenses, read_calibration
from sld_core.camera.images import image_size, read_image
from sld_core.camera.undistortion import Undistortion
from sld_core.data.formats import scene_json
from sld_core.data.frame_selection import Candidate, Rejection
from sld_core.data.image_files import read_depth_mm
from sld_core.data.pose_files import read_pose
from sld_core.data.session_names import natural, read_list, session_labels
from sld_core.stages import IN_MAP, MARK
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)

SUFFIXES = ".jpg", ".jpeg", ".png"
DEPTH, POSE, INTRINSICS = ".depth.png", ".pose.txt", "camera-intrinsics.txt"
EXIF_IFD, FOCAL_35MM = 0x8769, 0xA405


def candidates(
    folder: Path,
    calibration: Calibration | None,
    progress: Callable[[Progress], None],
    list_path: Path | None = None,
    with_poses: bool = False,
) -> Iterator[Candidate | Rejection]:
    """The photographs of a folder in the order of their names, or of the list; files that are not
    photographs become Rejections."""
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of images")
    found = _listed(folder, list_path) if list_path else _all(folder)
    paths = [item for item in found if isinstance(item, Path)]
    yield from (item for item in found if isinstance(item, Rejection))
    lenses, focals = Lenses(calibration), {} if calibration else _focals(folder, paths)
    sessions = session_labels(_session(folder, path) for path in paths)
    beside = _beside(paths, with_poses)
    for i, path in enumerate(paths):
        try:
            yield from _photo(folder, path, sessions, lenses, focals, beside[path])
        except SldError as error:
            yield rejection(folder, path, error)
        progress(Progress("reading images", (i + 1) / len(paths)))


def files_read(folder: Path, list_path: Path | None = None, with_poses: bool = False) -> list[Path]:
    """The files in `folder` that `candidates` and `calibration_beside` read: other files there do
    not change a map."""
    found = _listed(folder, list_path) if list_path else _all(folder)
    images = [item for item in found if isinstance(item, Path)]
    endings = (DEPTH, POSE) if with_poses else (DEPTH,)
    beside = [beside_image(path, ending) for path in images for ending in endings]
    notes = [place / scene_json.NAME for place in {path.parent for path in images}]
    return sorted(
        {path for path in (folder / INTRINSICS, *images, *beside, *notes) if path.is_file()}
    )


def calibration_beside(folder: Path) -> Calibration | None:
    """That of the folder's own camera-intrinsics.txt, where there is one."""
    path = folder / INTRINSICS
    if not path.is_file():
        return None
    log.info("%s is used as the calibration of all its images", path)
    return read_calibration(path)


def _beside(paths: list[Path], with_poses: bool) -> dict[Path, tuple[str, ...]]:
    """Photograph -> endings of the files to look for beside it; no depth in the folder of a map
    that is not metric."""
    beside: dict[Path, tuple[str, ...]] = {}
    for place in sorted({path.parent for path in paths}):
        beside[place] = (POSE,) if with_poses else ()
        if scene_json.depth_is_metric(place):
            beside[place] += (DEPTH,)
        elif any(place.glob("*" + DEPTH)):
            log.warning(
                "%s: depth images there are left out: %s does not say that they are in millimetres",
                place,
                scene_json.NAME,
            )
    return {path: beside[path.parent] for path in paths}


def _photo(
    folder: Path,
    path: Path,
    sessions: dict[str, str],
    lenses: Lenses,
    focals: dict,
    beside: tuple[str, ...],
) -> Iterator[Candidate | Rejection]:
    width, height = image_size(path)
    _check_kind(path)
    session = _session(folder, path)
    lens = lenses(width, height, focals.get((session, width, height), 0.0))
    T, pose_path = None, beside_image(path, POSE)
    if POSE in beside and pose_path.exists():
        T = yield from _or_rejection(folder, pose_path, read_pose)
    yield from photograph(folder, path, sessions[session], lens, T, DEPTH in beside)


def photograph(
    folder: Path,
    path: Path,
    session: str,
    lens: Undistortion,
    T_world_camera: np.ndarray | None,
    with_depth: bool,
) -> Iterator[Candidate | Rejection]:
    """One image file, undistorted, with the depth image beside it where there is one; a damaged
    depth image is named as a Rejection. SldError where the image itself cannot be used."""
    image = read_image(path)
    height, width = image.shape[:2]
    depth, depth_path = None, beside_image(path, DEPTH)
    if with_depth and depth_path.exists():
        depth = yield from _or_rejection(
            folder, depth_path, lambda path: lens.nearest(read_depth_mm(path, (width, height)))
        )
    is_kept = lens.maps is None and path.suffix.lower() != ".png"
    yield Candidate(
        lens(image),
        lens.camera,
        session,
        relative(folder, path),
        T_world_camera=T_world_camera,
        jpeg=path.read_bytes() if is_kept else None,
        depth_mm_HW=depth,
    )


def _or_rejection(folder: Path, path: Path, read: Callable):
    """What lies beside a photograph; where it is damaged it becomes a Rejection, and the photograph
    is used without it."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SldError(f"{path}: a link that leads out of {folder}")
        if not path.is_file():
            raise SldError(f"{path}: no file but a folder, device or pipe")
        return read(path)
    except SldError as error:
        yield rejection(folder, path, error)
        return None


def rejection(folder: Path, path: Path, error: SldError) -> Rejection:
    """Why a file is left out, with the kind of the reason."""
    kinds = {"other size": "image is ", "outside": "leads out", "no photograph": "no photograph"}
    kind = next((kind for kind, words in kinds.items() if words in str(error)), "damaged")
    return Rejection(relative(folder, path), f"{kind}: {error}")


def _check_kind(path: Path) -> None:
    """SldError for a depth image that another tool has named like a photograph."""
    with open(path, "rb") as file:
        head = file.read(26)
    if head[:4] == b"\x89PNG" and tuple(head[24:26]) == (16, 0):
        raise SldError(f"{path}: no photograph: 16-bit values of one channel")


def _all(folder: Path) -> list[Path | Rejection]:
    """The images below a folder, in natural order; what is named like one and is none becomes a
    Rejection."""
    found: list[Path | Rejection] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        for name in folders:
            if (here / name).is_symlink():
                reason = "outside: a link to a folder is not followed"
                found.append(Rejection(relative(folder, here / name), reason))
        # a map holds its images once more in its work folder
        hidden = [name for name in folders if name.startswith(".")]
        skipped = [*hidden, IN_MAP] if MARK in files else hidden
        folders[:] = [name for name in folders if name not in skipped]
        found += [_image_or_rejection(folder, here / name) for name in files if _is_image(name)]
    return sorted(
        found,
        key=lambda item: natural(relative(folder, item) if isinstance(item, Path) else item.source),
    )


def _is_image(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.endswith(DEPTH) and not lower.startswith(".")


def _image_or_rejection(folder: Path, path: Path) -> Path | Rejection:
    if not path.resolve().is_relative_to(folder.resolve()):
        return Rejection(relative(folder, path), "outside: a link that leads out of the folder")
    return path if path.is_file() else Rejection(relative(folder, path), "damaged: not a file")


def _listed(folder: Path, list_path: Path) -> list[Path | Rejection]:
    """The images that a list names, with or without their endings."""
    names = read_list(list_path)
    paths = [_image_of(folder, name) for name in names]
    return [
        path if path.is_file() else Rejection(name, "missing: no such image")
        for name, path in zip(names, paths, strict=True)
    ]


def _image_of(folder: Path, name: str) -> Path:
    """The image that a name means; the name itself where there is none."""
    endings = [".color.jpg", ".color.png", *SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]
    if name.lower().endswith(SUFFIXES):
        endings.insert(0, "")
    return next(
        (folder / (name + ending) for ending in endings if (folder / (name + ending)).is_file()),
        folder / name,
    )


def _focals(folder: Path, paths: list[Path]) -> dict[tuple[str, int, int], float]:
    """(session, width, height) -> focal length in pixels that EXIF states, the median over the
    images of one lens."""
    stated: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                focal_mm = float(image.getexif().get_ifd(EXIF_IFD).get(FOCAL_35MM, 0))
        except Exception:  # Pillow raises anything on damaged metadata; there is a guess without
            continue
        if 5 <= focal_mm <= 1000:  # equivalent on the 36 x 24 mm film, by the diagonal
            stated[_session(folder, path), width, height].append(
                focal_mm * np.hypot(width, height) / np.hypot(36, 24)
            )
    return {lens: float(np.median(focals)) for lens, focals in stated.items()}


def _session(folder: Path, path: Path) -> str:
    """The subfolder; empty for the folder itself."""
    parent = path.parent.relative_to(folder).as_posix()
    return "" if parent == "." else parent


def beside_image(path: Path, ending: str) -> Path:
    """IMG_1.depth.png of IMG_1.jpg, frame-000001.depth.png of frame-000001.color.jpg."""
    return path.with_name(path.stem.removesuffix(".color") + ending)


def relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
