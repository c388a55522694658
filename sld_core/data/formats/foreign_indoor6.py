"""Data sets in the layout of Indoor-6 that other programs made: read from the plain files alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from sld_core import geometry, stages
from sld_core.camera.encodings import encode_jpeg, encode_png
from sld_core.camera.images import image_size, read_image
from sld_core.camera.undistortion import undistortion
from sld_core.data.formats import plain_files, restricted_pickle
from sld_core.data.formats.plain_files import IMAGE_ENDING, Lens
from sld_core.data.image_files import read_depth_mm
from sld_core.files import write_atomically
from sld_core.types import Camera, Frame, SceneData, SldError, Visibility

log = logging.getLogger(__name__)

MAX_DISTORTION_PX = 0.5  # in the corner, below which an image counts as free of distortion
JPEG_QUALITY = 95


def read_foreign(
    folder: Path,
    landmarks_file: str | None,
    visibility_file: str | None,
    undistorted: Path | None,
    images: bool,
) -> SceneData:
    """See indoor6.read_scene_data. Images without a pose file are left out."""
    landmarks_path = _chosen(folder, "landmarks", landmarks_file, "")
    visibility_path = _chosen(
        folder, "visibility", visibility_file, landmarks_path.stem.removeprefix("landmarks")
    )
    splits = read_splits(folder)
    landmarks = plain_files.read_landmarks(landmarks_path)
    flags_LN = plain_files.read_flags(visibility_path, len(landmarks))
    columns = _columns(folder, splits, flags_LN.shape[1], visibility_path)
    posed = [
        name
        for name in sorted(splits)
        if (folder / name.replace(IMAGE_ENDING, ".pose.txt")).exists()
    ]
    if len(posed) < len(splits):
        log.warning(
            "%d of %d images of %s have no pose and are left out",
            len(splits) - len(posed),
            len(splits),
            folder,
        )
    if not posed:
        raise SldError(
            f"{folder}: none of {len(splits)} images has a pose; expected files like "
            f"{min(splits).split('.')[0]}.pose.txt"
        )
    frames = tuple(_frame(folder, name, undistorted, images) for name in posed)
    seen_FL = flags_LN[:, [columns[name] for name in posed]].T
    visibility_FL = _visibility(frames, landmarks.xyz_L3, seen_FL, visibility_path)
    return SceneData(
        frames, tuple(splits[name][0] for name in posed), landmarks, visibility_FL, metric=True
    )


def read_splits(folder: Path) -> dict[str, tuple[str, int | None]]:
    """Name of the image file -> its split, and its column of visibility where the file says it."""
    path = folder / "train_test_val.pkl"
    values = restricted_pickle.read_plain(path)
    if not isinstance(values, dict) or not all(
        isinstance(values.get(key), list) for key in ("train", "val", "test")
    ):
        raise SldError(f"{path}: expected a dict with lists of names: train, val, test")
    out: dict[str, tuple[str, int | None]] = {}
    for key in ("train", "val", "test"):
        index = values.get(f"{key}_idx")
        if index is not None and (
            not isinstance(index, list)
            or len(index) != len(values[key])
            or not all(type(i) is int for i in index)
        ):
            raise SldError(
                f"{path}: {key}_idx: expected a list of {len(values[key])} whole numbers, one "
                f"for each name of {key}"
            )
        for number, name in enumerate(values[key]):
            if plain_files.checked_name(name, path) in out:
                raise SldError(f"{path}: names {name} twice")
            out[name] = key, None if index is None else index[number]
    if not out:
        raise SldError(f"{path}: names no image")
    return out


def _chosen(folder: Path, kind: str, choice: str | None, suffix: str) -> Path:
    """The file that was asked for, or the only one of this kind, beside the images or in a folder
    named like the kind."""
    if choice:
        path = folder / choice
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SldError(f"{choice}: leads out of {folder}; expected a file in it")
        return path
    found = sorted([*folder.glob(f"{kind}-*.txt"), *(folder / kind).glob(f"{kind}-*.txt")])
    exact = [path for path in found if path.stem == kind + suffix]
    fitting = exact or [path for path in found if path.stem.startswith(kind + suffix)]
    if len(fitting) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in found[:8])
        raise SldError(
            f"{folder}: {len(fitting)} files {kind}{suffix or '-'}*.txt ({names or 'none'}); "
            f"expected a labelled dataset (of `sld map` or Indoor-6) with one, or a choice of one "
            f"(--{kind}-file)"
        )
    return fitting[0]


def _columns(
    folder: Path, splits: dict[str, tuple[str, int | None]], width: int, path: Path
) -> dict[str, int]:
    """The column of each image: as train_test_val.pkl says, else in order of the names of all
    images of the folder."""
    if all(index is not None for _, index in splits.values()):
        columns = {name: index for name, (_, index) in splits.items()}
    else:
        columns = {p.name: i for i, p in enumerate(sorted(folder.glob("*" + IMAGE_ENDING)))}
        if len(columns) != width:
            raise SldError(
                f"{path}: {width} columns; expected {len(columns)}, one for each image of {folder}"
            )
    used = [columns.get(name) for name in splits]
    if None in used:
        missing = next(name for name in splits if name not in columns)
        raise SldError(f"{folder / missing}: no such image; train_test_val.pkl names it")
    if len(set(used)) != len(used) or not all(0 <= i < width for i in used):
        raise SldError(
            f"{path}: has {width} columns, train_test_val.pkl asks for column {min(used)} to "
            f"{max(used)} or for one twice; expected a column for each image"
        )
    return columns


def _frame(folder: Path, name: str, undistorted: Path | None, images: bool) -> Frame:
    stem = name[: -len(IMAGE_ENDING)]
    image_path, depth_path = folder / name, folder / f"{stem}.depth.png"
    path = folder / f"{stem}.intrinsics.txt"
    lens, size = plain_files.read_lens(path), image_size(image_path)
    if size != (lens.width, lens.height):
        raise SldError(
            f"{image_path}: the image is {size[0]}x{size[1]} but {path.name} is for "
            f"{lens.width}x{lens.height}; expected the intrinsics of this image"
        )
    depth = depth_path if depth_path.is_file() else None
    if images and _distortion_px(lens) > MAX_DISTORTION_PX:
        if undistorted is None:
            raise SldError(
                f"{path}: kappa {lens.kappa} moves the corner by {_distortion_px(lens):.1f} px; "
                "expected images free of distortion, or a folder to write undistorted ones into "
                "(undistorted=...)"
            )
        image_path, depth = _undistorted(lens, image_path, depth, undistorted)
    folders = [part for part in Path(lens.original_path).parts[:-1] if part not in ("..", "/")]
    return Frame(
        stem,
        image_path,
        Camera(lens.width, lens.height, lens.f, lens.f, lens.px, lens.py),
        plain_files.read_pose(folder / f"{stem}.pose.txt"),
        depth,
        session="/".join(folders),
        source=lens.original_path,
    )


def _distortion_px(lens: Lens) -> float:
    """By how much kappa moves the farthest corner."""
    x = max(lens.px, lens.width - lens.px) / lens.f
    y = max(lens.py, lens.height - lens.py) / lens.f
    return abs(lens.kappa) * (x * x + y * y) ** 1.5 * lens.f


def _undistorted(
    lens: Lens, image_path: Path, depth_path: Path | None, out: Path
) -> tuple[Path, Path | None]:
    """Paths of the undistorted image and depth, made unless they are there from an earlier time
    with the same lens."""
    key = stages.key_of(
        repr(lens), image_path.stat().st_size, image_path.stat().st_mtime_ns, depth_path is None
    )
    stem = out / f"{image_path.name[: -len(IMAGE_ENDING)]}.{key[:12]}"
    target, depth_target = (stem.with_name(stem.name + e) for e in (IMAGE_ENDING, ".depth.png"))
    # pixel centres at integers
    K = np.array([[lens.f, 0, lens.px - 0.5], [0, lens.f, lens.py - 0.5], [0, 0, 1]])
    correct = undistortion(K, np.array([lens.kappa, 0, 0, 0]), "plumb_bob", lens.width, lens.height)
    if not target.exists():
        write_atomically(target, encode_jpeg(correct(read_image(image_path)), JPEG_QUALITY))
    if depth_path is None:
        return target, None
    if not depth_target.exists():
        depth = correct.nearest(read_depth_mm(depth_path, (lens.width, lens.height)))
        write_atomically(depth_target, encode_png(depth))
    return target, depth_target


def _visibility(
    frames: tuple[Frame, ...], xyz_L3: np.ndarray, seen_FL: np.ndarray, path: Path
) -> np.ndarray:
    """Seen and inside: VISIBLE; outside: HIDDEN; inside and not seen: UNKNOWN, as nobody looked."""
    inside_FL = np.zeros(seen_FL.shape, bool)
    for inside, frame in zip(inside_FL, frames):
        xy, z = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), xyz_L3)
        with np.errstate(invalid="ignore"):
            inside[:] = (
                (z > 0) & (xy >= 0).all(1) & (xy < [frame.camera.width, frame.camera.height]).all(1)
            )
    outside, seen = int((seen_FL & ~inside_FL).sum()), int(seen_FL.sum())
    if outside > 0.5 * seen:
        raise SldError(
            f"{path}: {outside} of {seen} landmarks seen lie outside of the images that see "
            "them; expected poses that map "
            "the world to the camera, metres, and a column for each image in order of names"
        )
    if outside:
        log.warning(
            "%d of %d landmarks marked as seen lie outside of their image and are taken as hidden",
            outside,
            seen,
        )
    return np.where(
        inside_FL, np.where(seen_FL, Visibility.VISIBLE, Visibility.UNKNOWN), Visibility.HIDDEN
    ).astype(np.uint8)
