"""Photographs in a folder, with depth, poses and intrinsics where they lie beside."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sld_core.camera.calibration import Calibration, Lenses, read_calibration
from sld_core.camera.images import read_image
from sld_core.data.formats import scene_json
from sld_core.data.frame_folder import MAX_LIST_BYTES, image_size, read_pose
from sld_core.data.frame_selection import Candidate, Rejection
from sld_core.data.image_files import read_depth_mm
from sld_core.data.session_names import natural, session_labels
from sld_core.files import read_text
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
    """The photographs of a folder in the order of their names, or of the list; what is none is
    named as a Rejection."""
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
            yield Rejection(_relative(folder, path), _kind(error))
        progress(Progress("reading images", (i + 1) / len(paths)))


def files_read(folder: Path, list_path: Path | None = None, with_poses: bool = False) -> list[Path]:
    """The files in `folder` that `candidates` and `calibration_beside` read: whatever else lies
    there changes no map."""
    found = _listed(folder, list_path) if list_path else _all(folder)
    images = [item for item in found if isinstance(item, Path)]
    endings = (DEPTH, POSE) if with_poses else (DEPTH,)
    beside = [_with_ending(path, ending) for path in images for ending in endings]
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
    """Photograph -> endings of what is looked for beside it: not of depth in the folder of a map
    that is in no metres."""
    known = {place: scene_json.depth_is_metric(place) for place in {path.parent for path in paths}}
    for place in sorted(
        place for place, is_known in known.items() if not is_known and any(place.glob("*" + DEPTH))
    ):
        log.warning(
            "%s: depth images there are left out: %s does not say that they are in millimetres",
            place,
            scene_json.NAME,
        )
    return {path: (POSE,) * with_poses + (DEPTH,) * known[path.parent] for path in paths}


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
    image = read_image(path)
    if lens.maps is not None:
        image = lens(image)
    T, depth = None, None
    if POSE in beside and (pose_path := _with_ending(path, POSE)).exists():
        T = yield from _or_rejection(folder, pose_path, read_pose)
    if DEPTH in beside and (depth_path := _with_ending(path, DEPTH)).exists():
        depth = yield from _or_rejection(
            folder, depth_path, lambda path: lens.nearest(read_depth_mm(path, (width, height)))
        )
    jpeg = path.read_bytes() if lens.maps is None and path.suffix.lower() != ".png" else None
    yield Candidate(
        image,
        lens.camera,
        sessions[session],
        _relative(folder, path),
        T_world_camera=T,
        jpeg=jpeg,
        depth_mm_HW=depth,
    )


def _or_rejection(folder: Path, path: Path, read: Callable):
    """What stands beside a photograph; when it is damaged, it is named and the photograph does
    without."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SldError(f"{path}: a link that leads out of {folder}")
        if not path.is_file():
            raise SldError(f"{path}: no file but a folder, device or pipe")
        return read(path)
    except SldError as error:
        yield Rejection(_relative(folder, path), _kind(error))
        return None


def _kind(error: SldError) -> str:
    text = str(error)
    kinds = {"other size": "image is ", "outside": "leads out", "no photograph": "no photograph"}
    return f"{next((kind for kind, words in kinds.items() if words in text), 'damaged')}: {text}"


def _check_kind(path: Path) -> None:
    """Depth images that other tools name otherwise must not become photographs."""
    with open(path, "rb") as file:
        head = file.read(26)
    if head[:4] == b"\x89PNG" and tuple(head[24:26]) == (16, 0):
        raise SldError(f"{path}: no photograph but 16-bit values of one channel")


def _all(folder: Path) -> list[Path | Rejection]:
    found: list[Path | Rejection] = []
    for place, folders, files in os.walk(folder):
        for name in sorted(folders):
            if (Path(place) / name).is_symlink():
                found.append(
                    Rejection(
                        _relative(folder, Path(place) / name),
                        "outside: a link to a folder is not followed",
                    )
                )
        # the images of a map that was made before are, once more, in its work
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (name == IN_MAP and MARK in files)
        ]
        for name in files:
            path = Path(place) / name
            if (
                name.startswith(".")
                or not name.lower().endswith(SUFFIXES)
                or name.lower().endswith(DEPTH)
            ):
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                found.append(
                    Rejection(
                        _relative(folder, path), "outside: a link that leads out of the folder"
                    )
                )
            elif path.is_file():
                found.append(path)
            else:
                found.append(Rejection(_relative(folder, path), "damaged: not a file"))
    return sorted(
        found,
        key=lambda item: natural(
            _relative(folder, item) if isinstance(item, Path) else item.source
        ),
    )


def _listed(folder: Path, list_path: Path) -> list[Path | Rejection]:
    """One name a line, with or without its endings, relative to the folder."""
    names = [
        line.strip()
        for line in read_text(Path(list_path), MAX_LIST_BYTES, "a list of names").splitlines()
        if line.strip()
    ]
    if len(names) > len(set(names)):
        raise SldError(f"{list_path}: names {len(names) - len(set(names))} images twice")
    for name in names:
        if len(name) > 1000 or not name.isprintable():
            raise SldError(f"{list_path}: {name[:40]!r}… is no name of an image")
        if not _image_of(folder, name).resolve().is_relative_to(folder.resolve()):
            raise SldError(f"{list_path}: {name!r} leads out of {folder}")
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
        except (
            Exception
        ):  # PIL raises whatever damaged metadata makes it meet; the guess does without
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


def _with_ending(path: Path, ending: str) -> Path:
    """IMG_1.depth.png of IMG_1.jpg, frame-000001.depth.png of frame-000001.color.jpg."""
    return path.with_name(path.stem.removesuffix(".color") + ending)


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
