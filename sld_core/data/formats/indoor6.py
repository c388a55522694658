"""Scene datasets in the layout of Indoor-6 and the paper: what `sld map` makes, what `sld teach
--scene-data` takes.

    image-000000.color.jpg        free of lens distortion
    image-000000.intrinsics.txt   W H f px py kappa original_path, in one line (plain_files.Lens)
    image-000000.pose.txt         3x4 [R|t], world to camera, metres
    image-000000.depth.png        optional; 16 bits, 1/1000 of the unit of the world, 0 = none
    train_test_val.pkl            train, val, test: names of images; *_idx: their columns
    landmarks-<L>.txt             L, then a line "id x y z" each, in order of choice
    visibility-<L>.txt            L lines of a 0 or 1 per image, in order of names: 1 = seen
    unknown-<L>.txt               ours, the same: 1 = nobody knows
    scene.json                    ours: see scene_json

With scene.json a data set reads back equal (PNG images have become JPEG). Without it (Indoor-6
itself, where landmarks and visibility lie in folders of that name) the cameras have fx = fy = f,
the unit is the metre, and a 0 of visibility, which there means "not matched", is UNKNOWN where the
landmark lies in the image and HIDDEN where it does not."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core.camera.images import read_image
from sld_core.data.formats import plain_files, scene_json
from sld_core.data.formats.foreign_indoor6 import read_foreign
from sld_core.data.formats.plain_files import IMAGE_ENDING
from sld_core.data.formats.scene_json import StoredScene
from sld_core.data.frame_json import check_images
from sld_core.data.image_files import write_jpeg
from sld_core.files import write_atomically
from sld_core.stages import MARK
from sld_core.types import Frame, SceneData, SldError, Visibility

log = logging.getLogger(__name__)

STAGING = ".sld-writing-"
JPEG_QUALITY = 95
SPLITS = ("train", "val", "test")
TABLES = ("landmarks", "visibility", "unknown")
DEPTH_ENDING = ".depth.png"


def write_scene_data(folder: Path, data: SceneData) -> None:
    """Write the data set into `folder`, beside whatever else is there; an earlier one of ours is
    replaced.

    All files are made in a folder of their own first, then moved in; scene.json comes last, and
    tells a half-moved data set. JPEG images and depths are linked (the same bytes) where the disk
    allows, else copied; PNG images become JPEG. SldError if a file of this name is there that no
    data set of ours left, or if `data` does not fit together."""
    folder = Path(folder)
    _check(data)
    stems = _stems(data.frames)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ours, files = scene_json.own_files(folder), _file_names(stems, data)
        foreign = [name for name in files if os.path.lexists(folder / name) and name not in ours]
        if foreign:
            raise SldError(
                f"{folder}: holds {len(foreign)} files of the same names that sld did not "
                f"write, the first is {foreign[0]}; choose another folder"
            )
        for abandoned in folder.glob(STAGING + "*"):
            shutil.rmtree(abandoned)
        staged = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        try:
            _write_files(staged, stems, data)
            _move_in(folder, staged, files, ours, _scene_text(folder, stems, data, files))
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise SldError(
            f"{error.filename or folder}: cannot be written ({error.strerror})"
        ) from None


def _check(data: SceneData) -> None:
    """SldError unless the parts of `data` fit each other and can be written."""
    F, L = len(data.frames), len(data.landmarks)
    if F == 0 or len(data.split_F) != F or not set(data.split_F) <= set(SPLITS):
        raise SldError(
            f"{F} frames with {len(data.split_F)} splits {sorted(set(data.split_F))}: expected "
            f"one of {', '.join(SPLITS)} for each"
        )
    if L == 0 or data.visibility_FL.shape != (F, L):
        raise SldError(
            f"visibility of shape {data.visibility_FL.shape}: expected {(F, L)}, frames by "
            "landmarks, and at least one landmark"
        )
    if any(f.T_world_camera is None for f in data.frames):
        raise SldError("a frame without a pose; leave frames without one out")
    check_images(data.frames)
    uneven = [f for f in data.frames if abs(f.camera.fx / f.camera.fy - 1) > 1e-3]
    if uneven:
        log.warning(
            "%d frames have fx and fy that differ by over 0.1 %%: their intrinsics.txt has the "
            "geometric mean, %s both",
            len(uneven),
            scene_json.NAME,
        )


def _stems(frames: tuple[Frame, ...]) -> list[str]:
    """The names of the frames' files without ending, in ascending order: the frames' own if they
    are like image-000000, else numbers; scene.json keeps the names."""
    names = [f.name for f in frames]
    if all(re.fullmatch(r"image-[0-9]{6}", name) for name in names) and names == sorted(names):
        return names
    return [f"image-{i:06d}" for i in range(len(frames))]


def _file_names(stems: list[str], data: SceneData) -> list[str]:
    L = len(data.landmarks)
    names = ["train_test_val.pkl", *(f"{kind}-{L}.txt" for kind in TABLES)]
    for stem, frame in zip(stems, data.frames):
        names += [stem + ending for ending in (IMAGE_ENDING, ".intrinsics.txt", ".pose.txt")]
        if frame.depth_path:
            names.append(stem + DEPTH_ENDING)
    return names


def _write_files(folder: Path, stems: list[str], data: SceneData) -> None:
    for stem, frame in zip(stems, data.frames):
        _write_image(frame.image_path, folder / (stem + IMAGE_ENDING))
        text = plain_files.intrinsics_text(frame.camera, frame.source or frame.image_path.name)
        (folder / f"{stem}.intrinsics.txt").write_bytes(text.encode(errors="replace"))
        (folder / f"{stem}.pose.txt").write_text(plain_files.pose_text(frame.T_world_camera))
        if frame.depth_path:
            _link(frame.depth_path, folder / (stem + DEPTH_ENDING))
    splits: dict[str, list] = {}
    for name in SPLITS:
        index = [i for i, s in enumerate(data.split_F) if s == name]
        splits |= {name: [stems[i] + IMAGE_ENDING for i in index], f"{name}_idx": index}
    # for other programs that read the layout of Indoor-6; ours takes the splits from scene.json
    (folder / "train_test_val.pkl").write_bytes(pickle.dumps(splits, protocol=2))
    values_LF = np.asarray(data.visibility_FL).T
    tables = (
        plain_files.landmarks_text(data.landmarks),
        plain_files.flags_text(values_LF == Visibility.VISIBLE),
        plain_files.flags_text(values_LF == Visibility.UNKNOWN),
    )
    for kind, text in zip(TABLES, tables, strict=True):
        (folder / f"{kind}-{len(data.landmarks)}.txt").write_text(text)


def _write_image(source: Path, target: Path) -> None:
    with open(source, "rb") as file:
        is_jpeg = file.read(2) == b"\xff\xd8"
    if is_jpeg:
        _link(source, target)
    else:
        write_jpeg(target, read_image(source), JPEG_QUALITY)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _scene_text(folder: Path, stems: list[str], data: SceneData, files: list[str]) -> str:
    frames = tuple(
        replace(
            frame,
            image_path=folder / (stem + IMAGE_ENDING),
            depth_path=folder / (stem + DEPTH_ENDING) if frame.depth_path else None,
        )
        for stem, frame in zip(stems, data.frames)
    )
    stored = StoredScene(frames, data.split_F, data.metric, data.world_frame, len(data.landmarks))
    return scene_json.to_text(folder, stored, files)


def _move_in(folder: Path, staged: Path, files: list[str], ours: set[str], text: str) -> None:
    write_atomically(
        folder / scene_json.NAME, scene_json.incomplete_text(sorted(ours | set(files))).encode()
    )
    for name in files:
        os.replace(staged / name, folder / name)
    for name in ours - set(files):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / scene_json.NAME, text.encode())


def read_scene_data(
    folder: Path,
    landmarks_file: str | None = None,
    visibility_file: str | None = None,
    undistorted: Path | None = None,
    images: bool = True,
) -> SceneData:
    """The data set of a folder, ours or one in the layout of Indoor-6; SldError names the first
    file that cannot be used.

    `landmarks_file` and `visibility_file` (relative to `folder`) choose where a data set that is
    not ours has several. Where its images have lens distortion, undistorted ones are written into
    `undistorted`, and the frames name these. Without `images` only poses and landmarks are wanted:
    distorted images are left as they are."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of a scene dataset")
    is_map = (folder / MARK).exists()
    try:
        stored = scene_json.read_scene_json(folder)
    except scene_json.Damaged:
        if not is_map:
            raise
        stored = None
    if stored is None and is_map:  # read by its plain files, a scene without scale would be metric
        raise SldError(
            f"{folder}: is a map of sld without its scene.json, or with a damaged one; "
            f"finish it with `sld map all --output {folder}`"
        )
    if stored is None:
        return read_foreign(folder, landmarks_file, visibility_file, undistorted, images)
    if landmarks_file or visibility_file:
        raise SldError(
            f"{folder}: is a data set of sld and has one set of landmarks; expected no choice "
            "of a file"
        )
    return _read_stored(folder, stored)


def _read_stored(folder: Path, stored: StoredScene) -> SceneData:
    """The rest of a data set of ours, which its scene.json describes."""
    check_images(stored.frames)
    L, F = stored.landmark_count, len(stored.frames)
    paths = [folder / f"{kind}-{L}.txt" for kind in TABLES]
    landmarks = plain_files.read_landmarks(paths[0])
    visible_LF, unknown_LF = (plain_files.read_flags(path, L) for path in paths[1:])
    if len(landmarks) != L or visible_LF.shape != (L, F) or unknown_LF.shape != (L, F):
        raise SldError(
            f"{folder}: {len(landmarks)} landmarks, visibility-{L}.txt {visible_LF.shape} and "
            f"unknown-{L}.txt {unknown_LF.shape} do not fit {L} landmarks and {F} images; write "
            "the data set again"
        )
    visibility_FL = np.where(unknown_LF, Visibility.UNKNOWN, visible_LF).T
    return SceneData(
        stored.frames,
        stored.split_F,
        landmarks,
        np.ascontiguousarray(visibility_FL, np.uint8),
        stored.metric,
        stored.world_frame,
    )
