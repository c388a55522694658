"""FrameSet -> camera poses and points by structure from motion (pycolmap: SIFT, our own choice of
pairs, COLMAP or GLOMAP).

The result lies in a frame of its own, of unknown scale (about metres where depth images took part)
and tilt; metric.align gives it metres and an upward direction."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sld_core.camera.calibration import guessed_camera
from sld_core.camera.images import read_image
from sld_core.camera.undistortion import Undistortion, undistortion
from sld_core.config.mapping import SfmConfig
from sld_core.data.image_files import read_depth_mm, write_depth, write_jpeg
from sld_core.optional import pycolmap
from sld_core.sfm import features, pairs
from sld_core.sfm.colmap import drop_if_damaged, pose_of, quiet, read_model, registered
from sld_core.sfm.mapper import drop_what_is_loose, polish, solve_poses
from sld_core.sfm.retriangulation import retriangulate
from sld_core.sfm.triangulation import pairs_from_poses
from sld_core.types import Frame, FrameSet, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
NEGLIGIBLE_DISTORTION_PX = 0.1  # at the image's corner
STILL_GUESSED = 0.01  # relative; a focal length that moved less was hardly estimated at all


@dataclass(frozen=True)
class SfmResult:
    """`reconstruction` is the largest connected piece; `pieces` are the sizes of all, largest
    first; `lost` names every frame that is not in the largest one, with the reason. `agreement` is
    the share of matched pairs that the poses explain (sfm.pair_agreement). `lenses` are the
    cameras in words, `notes` doubts about the result."""

    reconstruction: Reconstruction
    pieces: tuple[int, ...]
    lost: dict[str, str]
    reprojection_px: float
    agreement: float
    lenses: tuple[str, ...]
    notes: tuple[str, ...] = ()


def solve(
    frame_set: FrameSet,
    folder: Path,
    config: SfmConfig,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SfmResult:
    """Poses of as many frames as can be connected.

    `folder` keeps the features and matches (features.db, which a run that was killed goes on with;
    retriangulate.db has those for the final points too), the model in COLMAP's format (model/) and,
    where the lens distorts, undistorted images (images/)."""
    frames = frame_set.frames
    if config.mapper == "posed":
        raise ValueError(
            "mapper='posed' refines poses that frames have (sfm.triangulation); expected auto, "
            "incremental or global"
        )
    if len(frames) < 3:
        raise SldError(
            f"{len(frames)} images: at least 3 are needed to map anything; a room needs about 100"
        )
    quiet(seed)
    database = folder / "features.db"
    drop_if_damaged(database)
    _extract(database, frame_set, config, progress)
    _match(database, frames, config, seed, progress)
    models, agreed = solve_poses(database, frame_set, config, seed, folder, progress)
    model, others = models[0], models[1:]
    dropped, apart = polish(model, database, config, frame_set.intrinsics_known, progress)
    notes = []
    if config.neighbours and model.num_reg_images() > 1:
        more = _match_by_pose(database, model, frames, config, seed, progress)
        model, notes = retriangulate(model, more, frame_set, config, seed, progress)
        loose, loose_parts = drop_what_is_loose(model, config)
        dropped, apart = dropped | loose, apart + loose_parts
    (folder / "model").mkdir(exist_ok=True)
    model.write(folder / "model")
    if not frame_set.intrinsics_known:
        notes += _still_guessed(model, frames)
    return SfmResult(
        read_model(model, _pinhole_frames(model, frame_set, folder, progress)),
        tuple(sorted((*(m.num_reg_images() for m in models), *apart), reverse=True)),
        _lost(frames, model, others, database, dropped),
        model.compute_mean_reprojection_error(),
        agreed,
        tuple(_described(camera) for camera in model.cameras.values()),
        tuple(notes),
    )


def _extract(
    database: Path, frame_set: FrameSet, config: SfmConfig, progress: Callable[[Progress], None]
) -> None:
    """SIFT features of all images. Where the lens is unknown, the images of one size and session
    share one."""
    groups: dict[tuple, list[Frame]] = {}
    for frame in frame_set.frames:
        size = frame.camera.width, frame.camera.height
        lens = (frame.camera,) if frame_set.intrinsics_known else (frame.session, size)
        groups.setdefault(lens, []).append(frame)
    lens_of = features.pinhole_lens if frame_set.intrinsics_known else features.guessed_lens
    lenses = [lens_of(group[0].camera, _names(group)) for group in groups.values()]
    root = frame_set.frames[0].image_path.parent
    features.extract(database, root, lenses, config.max_features, progress)


def _names(frames: Sequence[Frame]) -> list[str]:
    return [f.image_path.name for f in frames]


def _match(
    database: Path,
    frames: Sequence[Frame],
    config: SfmConfig,
    seed: int,
    progress: Callable[[Progress], None],
) -> None:
    """Match the promising pairs and, as long as these leave the place in parts, also pairs that
    could join them."""
    names = _names(frames)

    def match(wanted: pairs.Pairs) -> None:
        by_name = [(names[i], names[j]) for i, j in wanted]
        features.match(database, by_name, 10, seed, progress)

    if pairs.is_exhaustive(frames, config):
        match(pairs.all_pairs(len(frames)))
        return
    descriptor_FC = pairs.global_descriptors(frames, seed, progress)
    likeness_FF = descriptor_FC @ descriptor_FC.T
    tried = set(pairs.propose(frames, likeness_FF, config))
    match(sorted(tried))
    verified_FF = _verified(database, names, config.min_bridge)
    for _ in range(config.bridge_rounds):
        for i, j in tried:  # not twice
            likeness_FF[i, j] = likeness_FF[j, i] = -np.inf
        more = pairs.bridges(likeness_FF, verified_FF, config.revisit_pairs)
        match(more)
        tried |= set(more)
        before, verified_FF = verified_FF, _verified(database, names, config.min_bridge)
        if (verified_FF == before).all():
            break  # no new pair joins parts
    log.info("%d pairs of %d matched", len(tried), len(frames) * (len(frames) - 1) // 2)


def _match_by_pose(
    database: Path,
    model: pycolmap.Reconstruction,
    frames: Sequence[Frame],
    config: SfmConfig,
    seed: int,
    progress: Callable[[Progress], None],
) -> Path:
    """Match the pairs that are close by their poses in `model`, in a copy of the database: a killed
    run must not continue from these."""
    copy = shutil.copyfile(database, database.with_name("retriangulate.db"))
    image_of = registered(model)
    placed = [
        replace(f, T_world_camera=pose_of(image_of[f.image_path.name]))
        for f in frames
        if f.image_path.name in image_of
    ]
    near = pairs_from_poses(placed, config.neighbours, config.max_view_angle_deg)
    by_name = [(placed[i].image_path.name, placed[j].image_path.name) for i, j in near]
    features.match(copy, by_name, 10, seed, progress)
    return copy


def _verified(database: Path, names: Sequence[str], min_inliers: int) -> np.ndarray:
    """Which images (F, F) share at least `min_inliers` matches that fit one geometry."""
    index = {name: i for i, name in enumerate(names)}
    verified_FF = np.zeros((len(names), len(names)), bool)
    for (a, b), inliers in _inliers(database).items():
        verified_FF[index[a], index[b]] = verified_FF[index[b], index[a]] = inliers >= min_inliers
    return verified_FF


def _inliers(database: Path) -> dict[tuple[str, str], int]:
    """How many matches of each pair of image names fit one geometry."""
    with pycolmap.Database.open(database) as db:
        name_of = {image.image_id: image.name for image in db.read_all_images()}
        pair_ids, counts = db.read_two_view_geometry_num_inliers()
    found = {}
    for pair_id, count in zip(pair_ids, counts):
        a, b = pycolmap.pair_id_to_image_pair(pair_id)
        found[name_of[a], name_of[b]] = int(count)
    return found


def _pinhole_frames(
    model: pycolmap.Reconstruction,
    frame_set: FrameSet,
    folder: Path,
    progress: Callable[[Progress], None],
) -> dict[str, Frame]:
    """Image name -> frame whose image is free of distortion; images are written again only where
    there is some."""
    image_of = registered(model)
    placed = [f for f in frame_set.frames if f.image_path.name in image_of]
    if frame_set.intrinsics_known:
        return {f.image_path.name: f for f in placed}
    undistort_of = {camera_id: _undistortion(lens) for camera_id, lens in model.cameras.items()}
    (folder / "images").mkdir(exist_ok=True)
    out = {}
    for i, frame in enumerate(placed):
        name = frame.image_path.name
        out[name] = _undistorted(frame, undistort_of[image_of[name].camera_id], folder / "images")
        progress(Progress("undistorting images", (i + 1) / len(placed)))
    return out


def _undistortion(lens: pycolmap.Camera) -> Undistortion:
    f, cx, cy, k = lens.params
    K = np.array([[f, 0, cx - 0.5], [0, f, cy - 0.5], [0, 0, 1]])
    radius = np.hypot(lens.width, lens.height) / 2
    shift_px = abs(k) * (radius / f) ** 2 * radius
    D = [k, 0, 0, 0] if shift_px > NEGLIGIBLE_DISTORTION_PX else []
    return undistortion(K, np.array(D), "plumb_bob", lens.width, lens.height)


def _undistorted(frame: Frame, undistort: Undistortion, folder: Path) -> Frame:
    if undistort.maps is None:
        return replace(frame, camera=undistort.camera)
    out = replace(frame, image_path=folder / frame.image_path.name, camera=undistort.camera)
    write_jpeg(out.image_path, undistort(read_image(frame.image_path)), JPEG_QUALITY)
    if frame.depth_path is not None:
        out = replace(out, depth_path=folder / frame.depth_path.name)
        size = frame.camera.width, frame.camera.height
        write_depth(out.depth_path, undistort.nearest(read_depth_mm(frame.depth_path, size)))
    return out


def _lost(
    frames: Sequence[Frame],
    model: pycolmap.Reconstruction,
    others: Sequence[pycolmap.Reconstruction],
    database: Path,
    dropped: Mapping[str, str],
) -> dict[str, str]:
    """Frame name -> why it is not in `model`. `dropped`: image name -> why its pose was taken
    away."""
    placed = registered(model)
    piece_of = {name: m.num_reg_images() for m in reversed(others) for name in registered(m)}
    best: Counter[str] = Counter()
    for pair, inliers in _inliers(database).items():
        for name in pair:
            best[name] = max(best[name], inliers)
    lost = {}
    for frame in frames:
        name = frame.image_path.name
        if name in dropped:
            lost[frame.name] = dropped[name]
        elif name in placed:
            continue
        elif name in piece_of:
            lost[frame.name] = (
                f"in a piece of {piece_of[name]} images that shares no view with the largest"
            )
        elif best[name]:
            lost[frame.name] = f"at most {best[name]} matches with another image"
        else:
            lost[frame.name] = "matches no other image"
    return lost


def _still_guessed(model: pycolmap.Reconstruction, frames: Sequence[Frame]) -> Iterator[str]:
    """A note for each lens whose focal length stayed at a guess from the size of the image."""
    frame_of = {f.image_path.name: f for f in frames}
    lens_of = {image.camera_id: name for name, image in registered(model).items()}
    for camera_id, name in sorted(lens_of.items()):
        frame, focal_px = frame_of[name], model.cameras[camera_id].params[0]
        guess = guessed_camera(frame.camera.width, frame.camera.height)
        if frame.camera == guess and abs(focal_px / guess.fx - 1) < STILL_GUESSED:
            where = f" of {frame.session!r}" if frame.session else ""
            yield (
                f"the focal length of the {guess.width}x{guess.height} images{where} is still the "
                f"first guess, {focal_px:.0f} px: too few views from the side determine it, and "
                "the map may be bent or stretched; calibrate the camera and give --intrinsics FILE"
            )


def _described(camera: pycolmap.Camera) -> str:
    return f"{camera.width}x{camera.height} {camera.model_name} {camera.params_to_string()}"
