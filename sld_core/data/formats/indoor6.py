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
import re
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from sld_core.camera.images import read_image
from sld_core.data.formats import plain_files, restricted_pickle, scene_json
from sld_core.data.formats.foreign_indoor6 import read_foreign, read_splits
from sld_core.data.formats.plain_files import IMAGE_ENDING
from sld_core.data.frame_folder import image_size
from sld_core.files import write_atomically
from sld_core.stages import MARK
from sld_core.types import Frame, SceneData, SldError, Visibility

log = logging.getLogger(__name__)

STAGING = ".sld-writing-"
JPEG_QUALITY = 95
SPLITS = ("train", "val", "test")


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
                f"write, the first is {foreign[0]}; "
                "choose another folder"
            )
        for abandoned in folder.glob(STAGING + "*"):
            shutil.rmtree(abandoned)
        staged = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        try:
            _write_files(staged, stems, data)
            _move_in(
                folder,
                staged,
                files,
                ours,
                scene_json.to_text(
                    stems, data.frames, data.metric, data.world_frame, len(data.landmarks), files
                ),
            )
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise SldError(
            f"{error.filename or folder}: cannot be written ({error.strerror})"
        ) from None


def read_scene_data(
    folder: Path,
    landmarks_file: str | None = None,
    visibility_file: str | None = None,
    undistorted: Path | None = None,
) -> SceneData:
    """The data set of a folder, ours or one in the layout of Indoor-6; SldError names the first
    file that cannot be used.

    `landmarks_file` and `visibility_file` (relative to `folder`) choose where a data set that is
    not ours has several. Where its images have lens distortion, undistorted ones are written into
    `undistorted`, and the frames name these."""
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
    if stored is None:
        if is_map:  # read as foreign, a scene without scale would pass for metric
            raise SldError(
                f"{folder}: is a map of sld without its scene.json, or with a damaged one; "
                "finish it with "
                f"`sld map all --output {folder}`"
            )
        return read_foreign(folder, landmarks_file, visibility_file, undistorted)
    if landmarks_file or visibility_file:
        raise SldError(
            f"{folder}: is a data set of sld and has one set of landmarks; expected no choice "
            "of a file"
        )
    split_F = _stored_splits(folder, stored)
    for frame in stored.frames:
        _check_frame(frame)
    count, number = len(stored.frames), stored.landmark_count
    landmarks = plain_files.read_landmarks(folder / f"landmarks-{number}.txt")
    if len(landmarks) != number:
        raise SldError(
            f"{folder}/landmarks-{number}.txt: holds {len(landmarks)} landmarks, "
            f"{scene_json.NAME} says {number}; "
            "write the data set again"
        )
    visible, unknown = (
        plain_files.read_flags(folder / f"{kind}-{number}.txt", number)
        for kind in ("visibility", "unknown")
    )
    if (
        visible.shape != (number, count)
        or unknown.shape != (number, count)
        or (visible & unknown).any()
    ):
        raise SldError(
            f"{folder}: visibility-{number}.txt {visible.shape} and unknown-{number}.txt "
            f"{unknown.shape} do not fit; "
            f"expected {(number, count)} for {number} landmarks and {count} images, and no 1 "
            "in both at one place"
        )
    visibility_FL = np.where(unknown, Visibility.UNKNOWN, visible).T.astype(np.uint8)
    return SceneData(
        stored.frames,
        split_F,
        landmarks,
        np.ascontiguousarray(visibility_FL),
        stored.metric,
        stored.world_frame,
    )


def _check(data: SceneData) -> None:
    """SldError unless the parts of `data` fit each other and can be written."""
    F, L = len(data.frames), len(data.landmarks)
    if F == 0 or len(data.split_F) != F or not set(data.split_F) <= set(SPLITS):
        raise SldError(
            f"{F} frames with {len(data.split_F)} splits {sorted(set(data.split_F))}: expected "
            "one of "
            f"{', '.join(SPLITS)} for each"
        )
    values = np.asarray(data.visibility_FL)
    if values.shape != (F, L) or not np.isin(values, list(Visibility)).all():
        raise SldError(
            f"visibility of shape {values.shape}: expected {(F, L)}, frames by landmarks, of "
            "0, 1 and 2"
        )
    ids, xyz_L3 = np.asarray(data.landmarks.point_L), np.asarray(data.landmarks.xyz_L3)
    fits = (
        L > 0
        and ids.shape == (L,)
        and len(np.unique(ids)) == L
        and (ids >= 0).all()
        and xyz_L3.shape == (L, 3)
    )
    if not fits or not np.isfinite(xyz_L3).all():
        raise SldError(
            f"{L} landmarks: expected at least one, each with a finite position (x, y, z) and "
            "an id of its own, not negative"
        )
    if len({f.name for f in data.frames}) != F:
        raise SldError("two frames have the same name; expected names of their own")
    scene_json.checked_label(data.world_frame, "world_frame")
    for f in data.frames:
        scene_json.checked_path(f.name, "name")
        scene_json.checked_label(f.session, "session")
        T = np.eye(5) if f.T_world_camera is None else np.asarray(f.T_world_camera, float)
        if (
            T.shape != (4, 4)
            or not np.isfinite(T).all()
            or np.abs(T[:3, :3] @ T[:3, :3].T - np.eye(3)).max() > 1e-5
        ):
            raise SldError(
                f"frame {f.name}: expected a rigid 4x4 pose, camera to world; leave frames "
                "without one out"
            )
        _check_size(f)
    uneven = [f for f in data.frames if abs(f.camera.fx / f.camera.fy - 1) > 1e-3]
    if uneven:
        log.warning(
            "%d frames have fx and fy that differ by over 0.1 %%: their intrinsics.txt has the "
            "geometric mean, %s both",
            len(uneven),
            scene_json.NAME,
        )


def _check_size(frame: Frame) -> None:
    size = image_size(frame.image_path)
    if size != (frame.camera.width, frame.camera.height):
        raise SldError(
            f"{frame.image_path}: the image is {size[0]}x{size[1]} but its intrinsics are for "
            f"{frame.camera.width}x{frame.camera.height}; expected the camera of this image"
        )


def _stems(frames: tuple[Frame, ...]) -> list[str]:
    """The names of the frames' files without ending, in ascending order: the frames' own if they
    are like image-000000, else numbers; scene.json keeps the names."""
    names = [f.name for f in frames]
    if all(re.fullmatch(r"image-[0-9]{6}", name) for name in names) and names == sorted(names):
        return names
    return [f"image-{i:06d}" for i in range(len(frames))]


def _file_names(stems: list[str], data: SceneData) -> list[str]:
    per_frame = [
        stem + ending
        for stem, f in zip(stems, data.frames)
        for ending in (
            IMAGE_ENDING,
            ".intrinsics.txt",
            ".pose.txt",
            *([".depth.png"] if f.depth_path else []),
        )
    ]
    L = len(data.landmarks)
    return [
        *per_frame,
        "train_test_val.pkl",
        f"landmarks-{L}.txt",
        f"visibility-{L}.txt",
        f"unknown-{L}.txt",
    ]


def _write_files(folder: Path, stems: list[str], data: SceneData) -> None:
    for stem, frame in zip(stems, data.frames):
        _write_image(frame.image_path, folder / (stem + IMAGE_ENDING))
        text = plain_files.intrinsics_text(frame.camera, frame.source or frame.image_path.name)
        (folder / f"{stem}.intrinsics.txt").write_bytes(text.encode(errors="replace"))
        (folder / f"{stem}.pose.txt").write_text(plain_files.pose_text(frame.T_world_camera))
        if frame.depth_path:
            _link(frame.depth_path, folder / f"{stem}.depth.png")
    splits: dict[str, list] = {}
    for name in SPLITS:
        index = [i for i, s in enumerate(data.split_F) if s == name]
        splits |= {name: [stems[i] + IMAGE_ENDING for i in index], f"{name}_idx": index}
    (folder / "train_test_val.pkl").write_bytes(restricted_pickle.write_plain(splits))
    L, values_LF = len(data.landmarks), np.asarray(data.visibility_FL).T
    (folder / f"landmarks-{L}.txt").write_text(plain_files.landmarks_text(data.landmarks))
    (folder / f"visibility-{L}.txt").write_text(
        plain_files.flags_text(values_LF == Visibility.VISIBLE)
    )
    (folder / f"unknown-{L}.txt").write_text(
        plain_files.flags_text(values_LF == Visibility.UNKNOWN)
    )


def _write_image(source: Path, target: Path) -> None:
    with open(source, "rb") as file:
        is_jpeg = file.read(2) == b"\xff\xd8"
    if is_jpeg:
        _link(source, target)
        return
    _, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(read_image(source), cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
    )
    target.write_bytes(data.tobytes())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _move_in(folder: Path, staged: Path, files: list[str], ours: set[str], text: str) -> None:
    write_atomically(
        folder / scene_json.NAME, scene_json.incomplete_text(sorted(ours | set(files))).encode()
    )
    for name in files:
        os.replace(staged / name, folder / name)
    for name in ours - set(files):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / scene_json.NAME, text.encode())


def _stored_splits(folder: Path, stored: scene_json.StoredScene) -> tuple[str, ...]:
    splits = read_splits(folder)
    column = {f.image_path.name: i for i, f in enumerate(stored.frames)}
    if set(splits) != set(column) or any(
        i is not None and i != column[name] for name, (_, i) in splits.items()
    ):
        raise SldError(
            f"{folder}/train_test_val.pkl: names other images than {scene_json.NAME}, or in "
            "another order; write the data set "
            f"again, or remove {scene_json.NAME} to read the plain files alone"
        )
    return tuple(splits[f.image_path.name][0] for f in stored.frames)


def _check_frame(frame: Frame) -> None:
    """SldError where the plain files of a frame are missing, damaged or say something else than
    scene.json."""
    stem = str(frame.image_path)[: -len(IMAGE_ENDING)]
    _check_size(frame)
    lens, camera = plain_files.read_lens(Path(stem + ".intrinsics.txt")), frame.camera
    pose = plain_files.read_pose(Path(stem + ".pose.txt"))
    same = {
        "intrinsics": np.allclose(
            [lens.width, lens.height, lens.f, lens.px, lens.py, lens.kappa],
            [camera.width, camera.height, np.sqrt(camera.fx * camera.fy), camera.cx, camera.cy, 0],
            1e-9,
            1e-9,
        ),
        "pose": np.allclose(pose, frame.T_world_camera, 1e-4, 1e-4),
    }
    for what, fits in same.items():
        if not fits:
            raise SldError(
                f"{stem}.{what}.txt: says something else than {scene_json.NAME}; write the "
                "data set again, or remove "
                f"{scene_json.NAME} to read the plain files alone"
            )
    if frame.depth_path and not frame.depth_path.is_file():
        raise SldError(f"{frame.depth_path}: no such file; {scene_json.NAME} names it")
