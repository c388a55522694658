"""Frames with poses -> Reconstruction: SIFT tracks triangulated with the given poses, then
bundle-adjusted (pycolmap).

Poses from odometry drift. Where the tracks do not fit them well, they are triangulated with loose
thresholds, poses and points are refined together, and all is triangulated again; the result stays
in the frame of the given poses.

What a seed holds still: the same image files, poses, settings and seed give the same tracks, points
and refined poses, bit for bit and in the same order, on one kind of processor with one version of
pycolmap, however many threads take part. So `sld teach` chooses the same landmarks in the same
order. Another processor or pycolmap rounds differently, and a point in a thousand comes or goes.
Structure from motion without poses (sfm.solve) has the same features, matches and random choices
for a seed, but adjusts maps of more than 25,000 observations in several threads, which sum in any
order: poses then differ in their last digits, and points at the thresholds with them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core import geometry, stages
from sld_core.config.scene import TrackConfig
from sld_core.files import write_atomically
from sld_core.optional import pycolmap
from sld_core.sfm import features
from sld_core.sfm.colmap import bundle_setup, errors_named, pose_of, quiet, read_model, registered
from sld_core.sfm.depth_bundle_adjustment import held_by_depth
from sld_core.sfm.reconstruction_file import ARRAYS, read_arrays
from sld_core.types import Frame, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

FILE, FORMAT = "tracks.npz", 2
MARK = "sld-tracks"  # the file that says that the others in the folder are ours
REPLACED = ("features.db", "model", "pairs.txt")
# residuals above which COLMAP adjusts in several threads; 27,000 observations of 40 kitchen frames
# take 1.4 s on one thread and 1.7 s on two
ONE_THREAD = 2**31 - 1


def reconstruct_once(
    frames: Sequence[Frame],
    work: Path,
    config: TrackConfig,
    seed: int,
    progress: Callable[[Progress], None],
) -> Reconstruction:
    """`reconstruct`, or its stored result in `work` when frames, poses and settings are the same.

    SldError where `work` holds files of others that would be replaced: users name this folder, and
    may name that of a map."""
    _claim(work)
    key, path = _key(frames, config, seed), work / FILE
    if (stored := _stored(path, key, frames)) is not None:
        log.info("tracks are up to date in %s", path)
        return stored
    with errors_named(work):
        result = reconstruct(frames, work, config, seed, progress)
        arrays = {name: getattr(result, name) for name in ARRAYS}
        poses = np.stack([f.T_world_camera for f in result.frames])
        temporary = work / "tracks.tmp.npz"
        np.savez(temporary, key=key, T_world_camera=poses, **arrays)
        temporary.replace(path)
    return result


def _claim(work: Path) -> None:
    """Mark `work` as ours."""
    if (work / stages.RECORD).exists():
        raise SldError(f"{work}: is a stage of a map; choose a new or empty folder")
    if (work / MARK).exists():
        return
    foreign = [name for name in REPLACED if (work / name).exists()]
    if foreign and not (work / FILE).exists():
        raise SldError(
            f"{work / foreign[0]}: would be replaced, and was not written by `sld teach` or "
            "`sld bench landmarks`; choose a new or empty folder"
        )
    write_atomically(
        work / MARK,
        b"features.db, model/, pairs.txt and tracks.npz are intermediate results of sld\n",
    )


def _stored(path: Path, key: str, frames: Sequence[Frame]) -> Reconstruction | None:
    """The result of an earlier run, if there is one with this key that can be read."""
    if not path.exists():
        return None
    try:
        data = read_arrays(path, "key", "T_world_camera", *ARRAYS)
    except SldError as error:
        log.warning("%s: tracks are computed again", str(error).split(";")[0])
        return None
    if str(data["key"]) != key:
        return None
    refined = tuple(replace(f, T_world_camera=T) for f, T in zip(frames, data["T_world_camera"]))
    return Reconstruction(refined, *(data[name] for name in ARRAYS))


def _key(frames: Sequence[Frame], config: TrackConfig, seed: int) -> str:
    digest = hashlib.sha256(repr((FORMAT, config, seed)).encode())
    for f in frames:
        status = f.image_path.stat()
        digest.update(
            repr((f.name, str(f.image_path), status.st_size, status.st_mtime_ns, f.camera)).encode()
        )
        digest.update(np.ascontiguousarray(f.T_world_camera, np.float64).tobytes())
    return digest.hexdigest()


def reconstruct(
    frames: Sequence[Frame],
    work: Path,
    config: TrackConfig,
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Reconstruction:
    """Points seen by at least two of `frames`, in the frame of their poses; the frames returned
    carry the refined poses.

    `work` is an existing folder for the feature database. All frames need a pose."""
    check(frames)
    quiet(seed)
    database = work / "features.db"
    database.unlink(missing_ok=True)
    root = Path(os.path.commonpath([f.image_path.parent for f in frames]))
    frame_of = {os.path.relpath(f.image_path, root): f for f in frames}
    names = list(frame_of)
    lenses = [
        features.pinhole_lens(camera, [name for name, f in frame_of.items() if f.camera == camera])
        for camera in dict.fromkeys(f.camera for f in frames)
    ]
    features.extract(database, root, lenses, config.max_features, _part(progress, 0.0, 0.4))
    pairs = pairs_from_poses(frames, config.neighbours, config.max_view_angle_deg)
    if not pairs:
        raise SldError(
            f"no two frames look within {config.max_view_angle_deg} degrees of each other: are "
            "the poses right?"
        )
    pairs = [(names[i], names[j]) for i, j in pairs]
    features.match(database, pairs, config.neighbours, seed, _part(progress, 0.4, 0.4))
    progress(Progress("triangulating", 0.8))
    error_px, angle_deg = config.reprojection_px, config.min_triangulation_deg

    def renew(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
        return triangulate(model, database, error_px, angle_deg, seed)

    model = renew(_posed_model(database, frame_of))
    if (
        config.refine_poses
        and model.compute_mean_reprojection_error() > config.good_reprojection_px
    ):
        refined = _refined(_posed_model(database, frame_of), database, frame_of, config, seed)
        if _is_better(refined, model, config):
            if config.depth_spread:
                refined, notes = held_by_depth(refined, renew, frame_of, config)
                for note in notes:
                    log.info("%s", note)
            model = _in_given_frame(refined, frame_of)
    progress(Progress("triangulating", 1.0))
    return read_model(model, frame_of)


def check(frames: Sequence[Frame]) -> None:
    """SldError unless the frames are enough, and have poses."""
    if len(frames) < 3:
        raise SldError(
            f"{len(frames)} frames: at least 3 are needed to triangulate anything; a room "
            "needs about 100"
        )
    missing = [f.name for f in frames if f.T_world_camera is None]
    if missing:
        raise SldError(f"{len(missing)} frames have no pose, the first is {missing[0]}")
    spaced = [f.name for f in frames if any(c.isspace() for c in f.name)]
    if spaced:
        raise SldError(
            f"frame name {spaced[0]!r}: names with spaces cannot be matched; rename the files"
        )


def _part(
    progress: Callable[[Progress], None], start: float, share: float
) -> Callable[[Progress], None]:
    """Reports the progress of a part of the job as that of the whole."""

    def report(part: Progress) -> None:
        progress(replace(part, fraction=start + share * part.fraction))

    return report


def pairs_from_poses(
    frames: Sequence[Frame], neighbours: int, max_view_angle_deg: float
) -> list[tuple[int, int]]:
    """Pairs (i < j) worth matching: each frame with about `neighbours` near ones whose optical axes
    are at most `max_view_angle_deg` apart.

    Being apart by the median distance of all frames costs as much as being turned by that angle."""
    T = np.stack([f.T_world_camera for f in frames])
    position_N3, axis_N3 = T[:, :3, 3], T[:, :3, 2]
    distance = np.linalg.norm(position_N3[:, None] - position_N3[None], axis=2)
    angle_deg = np.degrees(np.arccos(np.clip(axis_N3 @ axis_N3.T, -1, 1)))
    scale = max(float(np.median(distance)), 1e-6)
    cost = distance / scale + angle_deg / max_view_angle_deg
    cost[angle_deg > max_view_angle_deg] = np.inf
    np.fill_diagonal(cost, np.inf)
    pairs = set()
    for i, order in enumerate(np.argsort(cost, axis=1, kind="stable")):
        # half of the partners nearest, half spread over all that qualify: wide baselines make
        # points precise
        good = order[: np.isfinite(cost[i]).sum()]
        half = neighbours // 2
        spread = good[half:][:: max(1, (len(good) - half) // max(half, 1))][:half]
        pairs |= {(min(i, j), max(i, j)) for j in [*good[:half].tolist(), *spread.tolist()]}
    return sorted(pairs)


def _posed_model(database: Path, frame_of: Mapping[str, Frame]) -> pycolmap.Reconstruction:
    """A model with the database's camera and image ids and the frames' poses."""
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as db:
        cameras, images = db.read_all_cameras(), db.read_all_images()
    for camera in cameras:
        model.add_camera_with_trivial_rig(camera)
    for image in images:
        T = geometry.invert(frame_of[image.name].T_world_camera)
        copy = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id)
        model.add_image_with_trivial_frame(copy, pycolmap.Rigid3d(T[:3]))
    return model


def triangulate(
    model: pycolmap.Reconstruction,
    database: Path,
    max_error_px: float,
    min_angle_deg: float,
    seed: int,
) -> pycolmap.Reconstruction:
    """`model` with its points triangulated again from the matches in `database`; its poses stay as
    they are. `min_angle_deg` is the smallest angle between the rays to a point."""
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = seed
    options.extract_colors = False
    options.ba_min_num_residuals_for_cpu_multi_threading = ONE_THREAD
    options.mapper.filter_max_reproj_error = max_error_px
    options.mapper.filter_min_tri_angle = min_angle_deg
    tri = options.triangulation
    tri.merge_max_reproj_error = tri.complete_max_reproj_error = max_error_px
    # degrees; COLMAP's default of 2 goes with 4 px and more
    tri.create_max_angle_error = tri.continue_max_angle_error = max_error_px / 4.0
    tri.min_angle = min_angle_deg
    out = database.parent / "model"
    out.mkdir(exist_ok=True)
    # without colours it reads no image, so any folder does
    return pycolmap.triangulate_points(model, database, out, out, True, options, False)


def _refined(
    model: pycolmap.Reconstruction,
    database: Path,
    frame_of: Mapping[str, Frame],
    config: TrackConfig,
    seed: int,
) -> pycolmap.Reconstruction:
    """Poses and points adjusted together, first from loosely triangulated points, then from points
    triangulated with the poses that result."""
    for max_error_px in (config.loose_reprojection_px, config.reprojection_px):
        model = triangulate(model, database, max_error_px, config.min_triangulation_deg, seed)
        _adjust(model, frame_of, config)
    return model


def _adjust(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame], config: TrackConfig
) -> None:
    """Bundle adjustment of poses and points with the given positions as priors: they fix the frame
    and the scale, and keep rooms that hardly see each other from bending. Drops what does not fit
    afterwards."""
    options, which = bundle_setup(model, refine_lenses=False, max_iterations=30)
    options.ceres.min_num_residuals_for_cpu_multi_threading = ONE_THREAD
    priors = [
        pycolmap.PosePrior(
            position=frame_of[image.name].T_world_camera[:3, 3],
            position_covariance=np.eye(3) * config.prior_sigma_m**2,
            coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
            corr_data_id=image.data_id,
        )
        for image in registered(model).values()
    ]
    prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
    pycolmap.create_pose_prior_bundle_adjuster(options, prior_options, which, priors, model).solve()
    observations = pycolmap.ObservationManager(model)
    observations.filter_observations_with_negative_depth()
    observations.filter_all_points3D(config.reprojection_px, config.min_triangulation_deg)
    model.update_point_3d_errors()


def _is_better(
    refined: pycolmap.Reconstruction, given: pycolmap.Reconstruction, config: TrackConfig
) -> bool:
    """Whether refined poses are worth taking. Good poses, such as those of an earlier
    reconstruction, are left as they are: refinement always fits noise a little."""
    error, given_error = (m.compute_mean_reprojection_error() for m in (refined, given))
    count, given_count = (m.compute_num_observations() for m in (refined, given))
    fits_better = error < config.refine_gain * given_error
    sees_more = count > given_count / config.refine_gain
    better = count > 0.9 * given_count and (fits_better or sees_more)
    log.info(
        "poses %s: refined %.2f px over %d observations, given %.2f px over %d",
        "refined" if better else "kept as given",
        error,
        count,
        given_error,
        given_count,
    )
    return better


def _in_given_frame(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame]
) -> pycolmap.Reconstruction:
    """The refined model, moved rigidly so that its cameras fit the given ones in position and
    direction."""
    images = registered(model)
    refined = np.concatenate([_axis_points(pose_of(image)) for image in images.values()])
    given = np.concatenate([_axis_points(frame_of[name].T_world_camera) for name in images])
    _, R, t = geometry.similarity(refined, given, with_scale=False)
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(R), t))
    return model


def _axis_points(T: np.ndarray) -> np.ndarray:
    """A camera's centre and the points 1 m along its axes (4, 3): centres alone leave the tilt of
    the whole free where the camera hardly moved."""
    return T[:3, 3] + np.vstack([np.zeros(3), T[:3, :3].T])
