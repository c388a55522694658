"""Features and matches in a database -> camera poses and points: COLMAP image by image, GLOMAP all
at once, and a final refinement."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from sld_core.config.mapping import SfmConfig
from sld_core.optional import pycolmap
from sld_core.sfm.colmap import bundle_setup
from sld_core.sfm.pair_agreement import agreement
from sld_core.sfm.track_completion import complete_tracks
from sld_core.types import FrameSet, Progress, SldError

log = logging.getLogger(__name__)

MIN_OBSERVATIONS = 15  # of an image
WEAK = 0.35  # of the median image's points


def solve_poses(
    database: Path,
    frame_set: FrameSet,
    config: SfmConfig,
    seed: int,
    folder: Path,
    progress: Callable[[Progress], None],
) -> tuple[list[pycolmap.Reconstruction], float]:
    """The connected pieces, largest first, and how well the largest agrees with the matched pairs
    (sfm.pair_agreement).

    Image by image is precise and fast where images overlap well; rooms that a few views connect
    come out broken or folded, which the agreement shows: then all poses are solved at once, weak
    images are placed again, and the better of both is taken."""
    job = _Job(database, frame_set, config, seed, folder, progress)
    best: tuple[list[pycolmap.Reconstruction], float] = [], -1.0
    with pycolmap.Database.open(database) as db:
        for mapper in ("incremental", "global") if config.mapper == "auto" else (config.mapper,):
            models = _one_by_one(job) if mapper == "incremental" else _all_at_once(job)
            # poses with hardly a point are an accident of images taken from nearly one spot
            models = [
                m
                for m in models
                if m.compute_num_observations() > MIN_OBSERVATIONS * m.num_reg_images()
            ]
            agreed = agreement(models[0], db) if models else 0.0
            if mapper == "global" and models:
                again = _placed_again(models[0], job)
                if again and again.num_reg_images() >= models[0].num_reg_images():
                    better = agreement(again, db)
                    if better >= agreed:
                        models[0], agreed = again, better
            log.info(
                "%s: %s images, %.1f %% of the pairs agree",
                mapper,
                [m.num_reg_images() for m in models],
                100 * agreed,
            )
            if models and agreed > best[1]:
                best = models, agreed
            if agreed >= config.good_agreement:
                break
    if not best[0]:
        raise SldError(
            f"no two of the {len(frame_set.frames)} images could be put together: they overlap "
            "too little, lack texture or are blurred, or the camera only turned on the spot; take "
            "images from places 10 to 30 cm apart that look the same way"
        )
    return best


@dataclass(frozen=True)
class _Job:
    """What the mappers are given; each leaves its models in a folder of its own in `folder`."""

    database: Path
    frame_set: FrameSet
    config: SfmConfig
    seed: int
    folder: Path
    progress: Callable[[Progress], None]

    @property
    def images(self) -> Path:
        return self.frame_set.frames[0].image_path.parent

    @property
    def known(self) -> bool:
        return self.frame_set.intrinsics_known

    def out(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name


def _one_by_one(job: _Job) -> list[pycolmap.Reconstruction]:
    count, tried = len(job.frame_set.frames), itertools.count()

    def step() -> None:
        job.progress(Progress("solving poses", min(1.0, next(tried) / count)))

    options = _incremental(job)
    if job.config.mapper == "auto":  # a camera that turns on the spot takes for ever
        options.max_runtime_seconds = round(60 + job.config.patience_s * count)
    out = job.out("pieces-incremental")
    models = pycolmap.incremental_mapping(
        job.database, job.images, out, options, next_image_callback=step
    )
    return _largest_first(models)


def _all_at_once(job: _Job) -> list[pycolmap.Reconstruction]:
    job.progress(Progress("solving all poses at once", 0.0))
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = job.seed
    options.mapper.bundle_adjustment.refine_focal_length = not job.known
    options.mapper.bundle_adjustment.refine_extra_params = not job.known
    out = job.out("pieces-global")
    return _largest_first(pycolmap.global_mapping(job.database, job.images, out, options))


def _placed_again(model: pycolmap.Reconstruction, job: _Job) -> pycolmap.Reconstruction | None:
    """The model with its weakly connected images, and those that it lacks, placed image by image:
    solved all at once, a few wrong matches or a lack of parallax can put a group of them metres
    off."""
    model = copy.deepcopy(model)
    shown = {i: model.image(i).num_points3D for i in model.reg_image_ids()}
    few = WEAK * np.median(list(shown.values()))
    for image_id in (i for i, points in shown.items() if points < few):
        model.deregister_frame(model.image(image_id).frame_id)
    if model.num_reg_images() < 2:
        return None
    out = job.out("pieces-again")
    start = job.out("pieces-again/start")
    model.write(start)
    job.progress(Progress("placing weak images again", 0.0))
    options = _incremental(job)
    options.mapper.abs_pose_min_num_inliers = MIN_OBSERVATIONS  # few is what they have
    count = len(job.frame_set.frames)
    options.max_runtime_seconds = round(30 + 0.3 * job.config.patience_s * count)
    models = pycolmap.incremental_mapping(job.database, job.images, out, options, start)
    return _largest_first(models)[0] if models else None


def _largest_first(models: dict[int, pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    return sorted(models.values(), key=lambda m: -m.num_reg_images())


def _incremental(job: _Job) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = job.seed
    options.extract_colors = False
    options.min_model_size = 3  # small pieces are reported too
    unknown = not job.known
    options.ba_refine_focal_length = options.ba_refine_extra_params = unknown
    options.mapper.abs_pose_refine_focal_length = unknown
    options.mapper.abs_pose_refine_extra_params = unknown
    return options


def polish(
    model: pycolmap.Reconstruction,
    database: Path,
    config: SfmConfig,
    known: bool,
    progress: Callable[[Progress], None],
) -> tuple[dict[str, str], list[int]]:
    """Two rounds of track completion and bundle adjustment over all images, the second with tighter
    windows. Then images with too few points, and parts of the place that share hardly a point with
    the largest, lose their poses, which can be metres off: returns the names of these images with
    the reason, and the size of each such part. All images may lose theirs."""
    rounds = (config.completion_px, config.completion_px / 2) if config.completion_px else ()
    with pycolmap.Database.open(database) as db:
        for i, radius_px in enumerate(rounds):
            progress(Progress("completing tracks", i / len(rounds)))
            complete_tracks(model, db, radius_px, config)
            for _ in range(2):  # before and after what does not fit is dropped
                adjust(model, known)
                drop_misfits(model, config.reprojection_px, config.min_triangulation_deg)
    dropped, apart = drop_what_is_loose(model, config)
    if apart:
        adjust(model, known)  # without the pull of the parts on each other
        drop_misfits(model, config.reprojection_px, config.min_triangulation_deg)
        dropped |= _drop_loose(model)
        model.update_point_3d_errors()
    return dropped, apart


def drop_what_is_loose(
    model: pycolmap.Reconstruction, config: SfmConfig
) -> tuple[dict[str, str], list[int]]:
    """Remove the poses of images with too few points, and of parts that share hardly a point with
    the largest; returns these images' names with the reason, and the size of each such part."""
    dropped = _drop_loose(model)
    apart = parts(model, config.min_shared)[1:]
    for part in apart:
        reason = f"in a piece of {len(part)} images that hardly shares a point with the largest"
        dropped |= _drop(model, dict.fromkeys(part, reason))
    dropped |= _drop_loose(model)
    model.update_point_3d_errors()
    return dropped, [len(part) for part in apart]


def parts(model: pycolmap.Reconstruction, min_shared: int) -> list[list[int]]:
    """Ids of the images of each part that is connected by pairs that share at least `min_shared`
    points, largest first. Where only a few points join two parts, and these are wrong, one part
    lies anywhere and has any size."""
    image_ids = sorted(model.reg_image_ids())
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    # a set, for an image may show a point twice
    seen = sorted(
        {
            (row_of[e.image_id], k)
            for k, point in enumerate(model.points3D.values())
            for e in point.track.elements
        }
    )
    rows, columns = [row for row, _ in seen], [column for _, column in seen]
    shape = len(image_ids), model.num_points3D()
    shows = csr_array((np.ones(len(seen), np.int32), (rows, columns)), shape=shape)
    count, part_F = connected_components(shows @ shows.T >= min_shared, directed=False)
    found = [[image_ids[i] for i in np.flatnonzero(part_F == part)] for part in range(count)]
    return sorted(found, key=len, reverse=True)


def _drop_loose(model: pycolmap.Reconstruction) -> dict[str, str]:
    """Remove the poses of images with too few points, until there is no such image: each takes
    points away from others."""
    dropped: dict[str, str] = {}
    while True:
        shown = {i: model.image(i).num_points3D for i in sorted(model.reg_image_ids())}
        loose = {
            i: f"only {count} points hold its pose"
            for i, count in shown.items()
            if count < MIN_OBSERVATIONS
        }
        if not loose:
            return dropped
        dropped |= _drop(model, loose)


def _drop(model: pycolmap.Reconstruction, reasons: dict[int, str]) -> dict[str, str]:
    """Remove the poses of these images; returns the reasons by name of image."""
    for image_id, reason in reasons.items():
        log.info("%s loses its pose: %s", model.image(image_id).name, reason)
        model.deregister_frame(model.image(image_id).frame_id)
    return {model.image(image_id).name: reason for image_id, reason in reasons.items()}


def drop_misfits(model: pycolmap.Reconstruction, max_error_px: float, min_angle_deg: float) -> None:
    """Drop observations too far from where their point projects, and points that are seen from too
    nearly the same direction."""
    observations = pycolmap.ObservationManager(model)
    observations.filter_observations_with_negative_depth()
    observations.filter_all_points3D(max_error_px, min_angle_deg)


def adjust(model: pycolmap.Reconstruction, known: bool) -> None:
    """Bundle adjustment of all poses and points, and of the lenses unless they are known."""
    options, which = bundle_setup(model, refine_lenses=not known, max_iterations=50)
    which.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, which, model).solve()
