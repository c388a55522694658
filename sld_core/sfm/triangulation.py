"""Frames with poses -> Reconstruction: SIFT tracks triangulated with the given poses, then
bundle-adjusted (pycolmap).

Poses from odometry drift. Where the tracks do not fit them well, they are triangulated with loose
thresholds, poses and points are refined together, and all is triangulated again; the result stays
in the frame of the given poses."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.config.scene import TrackConfig
from sld_core.files import write_atomically
from sld_core.optional import pycolmap
from sld_core.sfm.colmap import CHUNK, bundle_setup, pose_of, quiet, read_model
from sld_core.sfm.reconstruction_file import ARRAYS, read_arrays
from sld_core.stages import RECORD
from sld_core.types import Frame, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

FILE, MARK = (
    "tracks.npz",
    "sld-tracks",
)  # the result, and the file that says that what else is there is ours
REPLACED = "features.db", "model", "pairs.txt"


def reconstruct_once(
    frames: Sequence[Frame],
    work: Path,
    config: TrackConfig,
    seed: int,
    progress: Callable[[Progress], None],
) -> Reconstruction:
    """`reconstruct`, or its stored result in `work` when frames, poses and settings are the same.
    SldError where `work` holds files that tracks would replace and did not write: people name this
    folder, and may name that of a map."""
    _claim(work)
    key, path = _key(frames, config, seed), work / FILE
    if (stored := _stored(path, key, frames)) is not None:
        log.info("tracks are up to date in %s", path)
        return stored
    result = reconstruct(frames, work, config, seed, progress)
    arrays = {name: getattr(result, name) for name in ARRAYS}
    temporary = work / "tracks.tmp.npz"
    np.savez(
        temporary,
        key=key,
        T_world_camera=np.stack([f.T_world_camera for f in result.frames]),
        **arrays,
    )
    temporary.replace(path)
    return result


def _claim(work: Path) -> None:
    """Mark `work` as ours."""
    if (work / RECORD).exists():
        raise SldError(f"{work}: is a stage of a map; choose a new or empty folder")
    if (work / MARK).exists():
        return
    foreign = [name for name in REPLACED if (work / name).exists()]
    if foreign and not (work / FILE).exists():
        raise SldError(
            f"{work / foreign[0]}: would be replaced, and is not of `sld teach` or `sld bench "
            "landmarks`; choose a new or "
            "empty folder"
        )
    write_atomically(
        work / MARK,
        b"features.db, model/, pairs.txt and tracks.npz are intermediate results of sld\n",
    )


def _stored(path: Path, key: str, frames: Sequence[Frame]) -> Reconstruction | None:
    """The result of an earlier run, where there is one of this key that can be read."""
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
    digest = hashlib.sha256(repr((config, seed)).encode())
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

    `work` is an existing folder for the feature database. All frames need a pose and must come from
    one camera."""
    check(frames)
    quiet(seed)
    database, root = work / "features.db", _common_root(frames)
    names = [os.path.relpath(f.image_path, root) for f in frames]
    database.unlink(missing_ok=True)
    _extract(database, root, names, frames[0], config, progress)
    _match(database, names, pairs_from_poses(frames, config), work, config, progress)
    posed = lambda: _posed_model(database, names, frames)
    triangulated = lambda model, max_error_px: triangulate(
        model, database, root, work, max_error_px, config, seed
    )
    model = triangulated(posed(), config.reprojection_px)
    if (
        config.refine_poses
        and model.compute_mean_reprojection_error() > config.good_reprojection_px
    ):
        adjust = lambda model: _adjusted(model, dict(zip(names, frames)), config)
        refined = adjust(
            triangulated(
                adjust(triangulated(posed(), config.loose_reprojection_px)), config.reprojection_px
            )
        )
        if _is_better(refined, model, config):
            model = _in_given_frame(refined, names, frames)
    progress(Progress("triangulating", 1.0))
    return read_model(model, dict(zip(names, frames)))


def _is_better(refined, given, config: TrackConfig) -> bool:
    """Good poses, such as those of an earlier reconstruction, are left as they are: refinement
    always fits noise a little."""
    error = [m.compute_mean_reprojection_error() for m in (refined, given)]
    count = [m.compute_num_observations() for m in (refined, given)]
    better = count[0] > 0.9 * count[1] and (
        error[0] < config.refine_gain * error[1] or count[0] > count[1] / config.refine_gain
    )
    log.info(
        "poses %s: refined %.2f px over %d observations, given %.2f px over %d",
        "refined" if better else "kept as given",
        error[0],
        count[0],
        error[1],
        count[1],
    )
    return better


def check(frames: Sequence[Frame]) -> None:
    """SldError unless the frames are enough, have poses, and come from one camera."""
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
    cameras = {f.camera for f in frames}
    if len(cameras) > 1:
        sizes = sorted({f"{c.width}x{c.height}" for c in cameras})
        raise SldError(
            f"the frames come from {len(cameras)} different cameras ({', '.join(sizes)}); "
            "expected one"
        )


def _common_root(frames: Sequence[Frame]) -> Path:
    return Path(os.path.commonpath([f.image_path.parent for f in frames]))


def pairs_from_poses(frames: Sequence[Frame], config: TrackConfig) -> list[tuple[int, int]]:
    """Pairs (i < j) worth matching: for each frame the nearest ones that look in a similar
    direction.

    A metre of distance counts as much as the angle that hides half of the view."""
    T = np.stack([f.T_world_camera for f in frames])
    position_N3, axis_N3 = T[:, :3, 3], T[:, :3, 2]
    distance = np.linalg.norm(position_N3[:, None] - position_N3[None], axis=2)
    angle_deg = np.degrees(np.arccos(np.clip(axis_N3 @ axis_N3.T, -1, 1)))
    scale = max(float(np.median(distance)), 1e-6)
    cost = distance / scale + angle_deg / config.max_view_angle_deg
    cost[angle_deg > config.max_view_angle_deg] = np.inf
    np.fill_diagonal(cost, np.inf)
    pairs = set()
    for i, order in enumerate(np.argsort(cost, axis=1, kind="stable")):
        # half of the partners nearest, half spread over all that qualify: wide baselines make
        # points precise
        good = order[: np.isfinite(cost[i]).sum()]
        half = config.neighbours // 2
        spread = good[half:][:: max(1, (len(good) - half) // max(half, 1))][:half]
        pairs |= {(min(i, j), max(i, j)) for j in [*good[:half].tolist(), *spread.tolist()]}
    return sorted(pairs)


def _extract(
    database: Path, root: Path, names: list[str], frame: Frame, config: TrackConfig, progress
) -> None:
    camera = frame.camera
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE"
    reader.camera_params = ",".join(
        repr(float(v)) for v in (camera.fx, camera.fy, camera.cx, camera.cy)
    )
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = config.max_features
    for start in range(0, len(names), CHUNK):
        progress(Progress("finding features", 0.4 * start / len(names)))
        pycolmap.extract_features(
            database,
            root,
            names[start : start + CHUNK],
            pycolmap.CameraMode.SINGLE,
            reader,
            options,
            pycolmap.Device.cpu,
        )
        reader.existing_camera_id = 1  # all chunks share the first one's camera


def _match(
    database: Path,
    names: list[str],
    pairs: list[tuple[int, int]],
    work: Path,
    config: TrackConfig,
    progress,
) -> None:
    if not pairs:
        raise SldError(
            f"no two frames look within {config.max_view_angle_deg} degrees of each other: are "
            "the poses right?"
        )
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = work / "pairs.txt"
    chunk = CHUNK * config.neighbours
    for start in range(0, len(pairs), chunk):
        progress(Progress("matching features", 0.4 + 0.4 * start / len(pairs)))
        pairing.match_list_path.write_text(
            "".join(f"{names[i]} {names[j]}\n" for i, j in pairs[start : start + chunk])
        )
        pycolmap.match_image_pairs(database, pairing_options=pairing, device=pycolmap.Device.cpu)
    progress(Progress("triangulating", 0.8))


def _posed_model(
    database: Path, names: list[str], frames: Sequence[Frame]
) -> pycolmap.Reconstruction:
    """A model with the database's camera and image ids and the frames' poses."""
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as db:
        camera = db.read_all_cameras()[0]
        ids = {image.name: image.image_id for image in db.read_all_images()}
    model.add_camera_with_trivial_rig(camera)
    for name, frame in zip(names, frames):
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=ids[name])
        T = geometry.invert(frame.T_world_camera)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T[:3]))
    return model


def triangulate(
    model: pycolmap.Reconstruction,
    database: Path,
    root: Path,
    work: Path,
    max_error_px: float,
    config: TrackConfig,
    seed: int,
) -> pycolmap.Reconstruction:
    """The points of `model` made anew from the matches in `database`, with its poses as they
    are."""
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = seed
    options.mapper.filter_max_reproj_error = max_error_px
    options.mapper.filter_min_tri_angle = config.min_triangulation_deg
    tri = options.triangulation
    tri.merge_max_reproj_error = tri.complete_max_reproj_error = max_error_px
    tri.create_max_angle_error = tri.continue_max_angle_error = (
        max_error_px / 4.0
    )  # degrees; COLMAP's 2 goes with 4 px and more
    tri.min_angle = config.min_triangulation_deg
    out = work / "model"
    out.mkdir(exist_ok=True)
    options.extract_colors = False
    return pycolmap.triangulate_points(model, database, root, out, True, options, False)


def _adjusted(model, frame_of: dict[str, Frame], config: TrackConfig):
    """`model` after bundle adjustment of poses and points, with the given positions as priors: they
    fix the frame and the scale, and keep rooms that hardly see each other from bending. What does
    not fit afterwards is dropped."""
    options, which = bundle_setup(model, refine_lenses=False, max_iterations=30)
    priors = []
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        position = frame_of[image.name].T_world_camera[:3, 3]
        priors.append(
            pycolmap.PosePrior(
                position=position,
                position_covariance=np.eye(3) * config.prior_sigma_m**2,
                coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
                corr_data_id=image.data_id,
            )
        )
    prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
    pycolmap.create_pose_prior_bundle_adjuster(options, prior_options, which, priors, model).solve()
    observations = pycolmap.ObservationManager(model)
    observations.filter_observations_with_negative_depth()
    observations.filter_all_points3D(config.reprojection_px, config.min_triangulation_deg)
    model.update_point_3d_errors()
    return model


def _in_given_frame(model, names: list[str], frames: Sequence[Frame]):
    """The refined model, moved rigidly so that its cameras fit the given ones in position and
    direction.

    A camera that hardly moves leaves the tilt of the whole free: points 1 m along each camera's
    axes take part."""
    axes = lambda T: T[:3, 3] + np.vstack([np.zeros(3), T[:3, :3].T])
    frame_of = dict(zip(names, frames))
    pairs = [
        (axes(pose_of(image)), axes(frame_of[image.name].T_world_camera))
        for image in model.images.values()
        if image.has_pose
    ]
    _, R, t = geometry.similarity(*(np.concatenate(side) for side in zip(*pairs)), with_scale=False)
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(R), t))
    return model
