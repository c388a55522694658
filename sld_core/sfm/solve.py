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
from sld_core.config.scene import TrackConfig
from sld_core.data.image_files import read_depth_mm, write_depth, write_jpeg
from sld_core.optional import pycolmap
from sld_core.sfm import pairs
from sld_core.sfm.colmap import CHUNK, drop_if_damaged, pose_of, quiet, read_model
from sld_core.sfm.mapper import drop_what_is_loose, polish, solve_poses
from sld_core.sfm.retriangulation import retriangulate
from sld_core.sfm.triangulation import pairs_from_poses
from sld_core.types import Camera, Frame, FrameSet, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
NEGLIGIBLE_DISTORTION_PX = 0.1  # at the image's corner
STILL_GUESSED = 0.01  # a focal length that moved by less from its guess; by chance it is so rarely


@dataclass(frozen=True)
class SfmResult:
    """`reconstruction` is the largest piece of the place that hangs together; `pieces` are the
    sizes of all, largest first; `lost` names every frame that is not in the largest one, with the
    reason. `agreement` is the share of matched pairs that the poses explain (sfm.pair_agreement).
    `lenses` describes the cameras for people, `notes` what to doubt."""

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
    """Poses of as many frames as hang together. `folder` keeps the features and matches
    (features.db, from which a run that was killed goes on; retriangulate.db has those for the final
    points too), the model in COLMAP's format (model/) and, where the lens distorts, undistorted
    images (images/)."""
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
    _match(database, frames, config, seed, folder, progress)
    models, agreed = solve_poses(database, frame_set, config, seed, folder, progress)
    model, others = models[0], models[1:]
    dropped, apart = polish(model, database, config, frame_set.intrinsics_known, progress)
    (folder / "model").mkdir(exist_ok=True)
    notes = []
    if config.neighbours and model.num_reg_images() > 1:
        more = shutil.copyfile(
            database, folder / "retriangulate.db"
        )  # a run that is killed must not go on from other matches
        placed = _placed(model, frames)
        _match_pairs(
            more,
            placed,
            pairs_from_poses(placed, TrackConfig(neighbours=config.neighbours)),
            folder,
            progress,
        )
        model, notes = retriangulate(model, more, frame_set, config, seed, folder, progress)
        loose, loose_parts = drop_what_is_loose(model, config)
        dropped, apart = dropped | loose, apart + loose_parts
    model.write(folder / "model")
    return SfmResult(
        read_model(model, _pinhole_frames(model, frame_set, folder, progress)),
        tuple(sorted((*(m.num_reg_images() for m in models), *apart), reverse=True)),
        _lost(frames, model, others, database, dropped),
        model.compute_mean_reprojection_error(),
        agreed,
        tuple(_described(camera) for camera in model.cameras.values()),
        (*notes, *(() if frame_set.intrinsics_known else _still_guessed(model, frames))),
    )


def _placed(model: pycolmap.Reconstruction, frames: Sequence[Frame]) -> list[Frame]:
    """The frames that have a pose in the model, with that."""
    pose_by_name = {image.name: pose_of(image) for image in model.images.values() if image.has_pose}
    return [
        replace(f, T_world_camera=pose_by_name[f.image_path.name])
        for f in frames
        if f.image_path.name in pose_by_name
    ]


def _extract(
    database: Path, frame_set: FrameSet, config: SfmConfig, progress: Callable[[Progress], None]
) -> None:
    """SIFT features of all images; frames that share a lens share a camera of the database."""
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = config.max_features
    groups: dict[tuple, list[Frame]] = {}
    for frame in frame_set.frames:
        size = frame.camera.width, frame.camera.height
        groups.setdefault(
            (frame.camera,) if frame_set.intrinsics_known else (frame.session, size), []
        ).append(frame)
    done = 0
    for group in groups.values():
        reader = _reader(group[0].camera, frame_set.intrinsics_known)
        _share_camera(
            reader, database, group
        )  # of a run that was killed, which must not become a second lens
        for start in range(0, len(group), CHUNK):
            chunk = group[start : start + CHUNK]
            progress(Progress("finding features", done / len(frame_set.frames)))
            pycolmap.extract_features(
                database,
                chunk[0].image_path.parent,
                [f.image_path.name for f in chunk],
                pycolmap.CameraMode.SINGLE,
                reader,
                options,
                pycolmap.Device.cpu,
            )
            _share_camera(reader, database, chunk)
            done += len(chunk)


def _share_camera(
    reader: pycolmap.ImageReaderOptions, database: Path, group: Sequence[Frame]
) -> None:
    """Images to come get the camera of those of `group` that the database has."""
    names = {frame.image_path.name for frame in group}
    with pycolmap.Database.open(database) as db:
        ids = [image.camera_id for image in db.read_all_images() if image.name in names]
    if ids:
        reader.existing_camera_id = ids[0]


def _reader(camera: Camera, known: bool) -> pycolmap.ImageReaderOptions:
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE" if known else "SIMPLE_RADIAL"
    values = (
        (camera.fx, camera.fy, camera.cx, camera.cy)
        if known
        else (camera.fx, camera.cx, camera.cy, 0.0)
    )
    reader.camera_params = ",".join(repr(float(v)) for v in values)
    return reader


def _match(
    database: Path,
    frames: Sequence[Frame],
    config: SfmConfig,
    seed: int,
    folder: Path,
    progress: Callable[[Progress], None],
) -> None:
    """Matches of the pairs worth it; while these leave the place in parts, of pairs that could join
    them."""
    if pairs.is_exhaustive(frames, config):
        _match_pairs(database, frames, pairs.all_pairs(len(frames)), folder, progress)
        return
    descriptor_FC = pairs.global_descriptors(frames, seed, progress)
    likeness_FF = descriptor_FC @ descriptor_FC.T
    tried = set(pairs.propose(frames, likeness_FF, config))
    _match_pairs(database, frames, sorted(tried), folder, progress)
    verified_FF = _verified(database, frames, config.min_bridge)
    for _ in range(config.bridge_rounds):
        likeness_FF[tuple(np.array(sorted(tried)).T)] = -np.inf  # not twice
        likeness_FF = np.minimum(likeness_FF, likeness_FF.T)
        more = pairs.bridges(likeness_FF, verified_FF, config.revisit_pairs)
        _match_pairs(database, frames, more, folder, progress)
        tried |= set(more)
        before, verified_FF = verified_FF, _verified(database, frames, config.min_bridge)
        if (verified_FF == before).all():
            break  # the parts have no more in common
    log.info("%d pairs of %d matched", len(tried), len(frames) * (len(frames) - 1) // 2)


def _match_pairs(
    database: Path,
    frames: Sequence[Frame],
    wanted: pairs.Pairs,
    folder: Path,
    progress: Callable[[Progress], None],
) -> None:
    """Pairs that the database has matches of already are passed over."""
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = folder / "pairs.txt"
    chunk = CHUNK * 10
    for start in range(0, len(wanted), chunk):
        progress(Progress("matching features", start / len(wanted)))
        lines = (
            f"{frames[i].image_path.name} {frames[j].image_path.name}\n"
            for i, j in wanted[start : start + chunk]
        )
        pairing.match_list_path.write_text("".join(lines))
        pycolmap.match_image_pairs(database, pairing_options=pairing, device=pycolmap.Device.cpu)


def _verified(database: Path, frames: Sequence[Frame], min_inliers: int) -> np.ndarray:
    """Which frames (F, F) share at least `min_inliers` matches that fit one geometry."""
    index = {f.image_path.name: i for i, f in enumerate(frames)}
    verified_FF = np.zeros((len(frames), len(frames)), bool)
    for (a, b), inliers in _inliers(database).items():
        verified_FF[index[a], index[b]] = verified_FF[index[b], index[a]] = inliers >= min_inliers
    return verified_FF


def _inliers(database: Path) -> dict[tuple[str, str], int]:
    """How many matches of each pair of image names fit one geometry."""
    with pycolmap.Database.open(database) as db:
        name_of = {image.image_id: image.name for image in db.read_all_images()}
        pairs = zip(*db.read_two_view_geometry_num_inliers())
        return {
            tuple(name_of[i] for i in pycolmap.pair_id_to_image_pair(pair)): int(count)
            for pair, count in pairs
        }


def _pinhole_frames(
    model: pycolmap.Reconstruction,
    frame_set: FrameSet,
    folder: Path,
    progress: Callable[[Progress], None],
) -> dict[str, Frame]:
    """Image name -> frame whose image is free of distortion; images are written anew only where
    there is some."""
    camera_of = {
        image.name: model.cameras[image.camera_id]
        for image in model.images.values()
        if image.has_pose
    }
    registered = [f for f in frame_set.frames if f.image_path.name in camera_of]
    if frame_set.intrinsics_known:
        return {f.image_path.name: f for f in registered}
    undistort_of = {camera.camera_id: _undistortion(camera) for camera in camera_of.values()}
    (folder / "images").mkdir(exist_ok=True)
    out = {}
    for i, frame in enumerate(registered):
        undistort = undistort_of[camera_of[frame.image_path.name].camera_id]
        out[frame.image_path.name] = _undistorted(frame, undistort, folder / "images")
        progress(Progress("undistorting images", (i + 1) / len(registered)))
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
    placed = {image.name for image in model.images.values() if image.has_pose}
    piece_of = {
        image.name: m.num_reg_images()
        for m in reversed(others)
        for image in m.images.values()
        if image.has_pose
    }
    best: Counter[str] = Counter()
    for pair, inliers in _inliers(database).items():
        for name in pair:
            best[name] = max(best[name], inliers)
    lost = {}
    for frame in frames:
        name = frame.image_path.name
        if name in dropped:
            lost[frame.name] = dropped[name]
        elif name in piece_of and name not in placed:
            lost[frame.name] = (
                f"in a piece of {piece_of[name]} images that shares no view with the largest"
            )
        elif name not in placed:
            lost[frame.name] = (
                f"at most {best[name]} matches with another image"
                if best[name]
                else "matches no other image"
            )
    return lost


def _still_guessed(model: pycolmap.Reconstruction, frames: Sequence[Frame]) -> Iterator[str]:
    """A note for each lens whose focal length did not move from a guess that nothing but the size
    of the image gave."""
    guess_of = {
        f.image_path.name: f.camera.fx
        for f in frames
        if f.camera == guessed_camera(f.camera.width, f.camera.height)
    }
    sessions = {f.image_path.name: f.session for f in frames}
    lens_of = {image.camera_id: image.name for image in model.images.values() if image.has_pose}
    for camera_id, name in sorted(lens_of.items()):
        camera = model.cameras[camera_id]
        if name in guess_of and abs(camera.params[0] / guess_of[name] - 1) < STILL_GUESSED:
            where = f" of {sessions[name]!r}" if sessions[name] else ""
            yield (
                f"the focal length of the {camera.width}x{camera.height} images{where} is "
                "still the first guess, "
                f"{camera.params[0]:.0f} px: too few views from aside tell it, and the map may "
                "be bent or stretched; calibrate the "
                "camera and give --intrinsics FILE"
            )


def _described(camera: pycolmap.Camera) -> str:
    return f"{camera.width}x{camera.height} {camera.model_name} {camera.params_to_string()}"
