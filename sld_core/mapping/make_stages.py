"""The stages of a map: each function fills the folder of its stage from what earlier ones left, and
returns what it found, for the summary.

What a stage is made with is imported in its function: the command line reads the table of stages,
and should not have to load all of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sld_core.config.mapping import MapConfig, SfmConfig
from sld_core.config.scene import TrackConfig
from sld_core.data.sources import Source
from sld_core.mapping.stage_outputs import LABELS, LANDMARKS, REPORT
from sld_core.sfm.reconstruction_file import write_reconstruction
from sld_core.sfm.subset import without_frames
from sld_core.stages import Done
from sld_core.types import FrameSet, Progress, Reconstruction, SceneData, SldError

NOT_IN_REPORT = ("alignment", "pieces", "landmarks", "split")


class Job(Protocol):
    """What a stage sees of the job that it belongs to (pipeline.MapJob)."""

    output: Path
    work: Path
    config: MapConfig
    source: Source | None
    model: Path | str | None
    progress: Callable[[Progress], None]

    def output_of(self, name: str) -> Any: ...
    def done(self, name: str) -> Done: ...
    def found_before(self, name: str) -> tuple[dict[str, Any], dict[str, float]]: ...


def make_frames(job: Job, folder: Path) -> dict[str, Any]:
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)  # of a run that was killed
    try:
        frame_set = _read_source(job, images)
    except (SldError, OSError):
        shutil.rmtree(images, ignore_errors=True)  # so that no later run takes them
        raise
    return {
        "images": len(frame_set.frames),
        "sessions": len({f.session for f in frame_set.frames}),
        "intrinsics_known": frame_set.intrinsics_known,
        "rejected": frame_set.rejected,
        "with_pose": sum(f.T_world_camera is not None for f in frame_set.frames),
    }


def _read_source(job: Job, folder: Path) -> FrameSet:
    from sld_core.camera.calibration import read_calibration
    from sld_core.data import sources

    source, config = job.source, job.config.frames
    calibration = read_calibration(source.calibration) if source.calibration else None
    if source.bag is not None:
        return sources.from_bag(source.bag, folder, config, job.config.bag, job.progress)
    if source.videos:
        return sources.from_videos(source.videos, folder, config, calibration, job.progress)
    return sources.from_photos(
        source.images,
        folder,
        config,
        calibration,
        job.progress,
        source.list_path,
        source.with_poses,
    )


def make_sfm(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.sfm.colmap import errors_named

    frame_set = job.output_of("frames")
    with errors_named(folder):
        if job.config.sfm.mapper == "posed":
            reconstruction, found = _refine_poses(job, frame_set, folder)
        else:
            reconstruction, found = _solve(job, frame_set, folder)
        write_reconstruction(folder, reconstruction)
    return (
        {"registered": len(reconstruction.frames)}
        | found
        | {"points": len(reconstruction.points_N3)}
    )


def _refine_poses(
    job: Job, frame_set: FrameSet, folder: Path
) -> tuple[Reconstruction, dict[str, Any]]:
    from sld_core.sfm.triangulation import reconstruct

    if not frame_set.intrinsics_known:
        raise SldError(
            "sfm.mapper=posed needs a calibrated camera: give --intrinsics FILE, or a bag with "
            "CameraInfo"
        )
    if lacking := [f.name for f in frame_set.frames if f.T_world_camera is None]:
        raise SldError(
            f"sfm.mapper=posed needs a pose of every image; {len(lacking)} of "
            f"{len(frame_set.frames)} have none, the first is {lacking[0]}: give --poses, or use "
            "sfm.mapper=incremental"
        )
    tracks = _track_config(job.config.sfm)
    reconstruction = reconstruct(frame_set.frames, folder, tracks, job.config.seed, job.progress)
    return reconstruction, {
        "pieces": [len(reconstruction.frames)],
        "lost": {},
        "reprojection_px": float(reconstruction.error_px_N.mean()),
        "lenses": [],
    }


def _track_config(config: SfmConfig) -> TrackConfig:
    return TrackConfig(
        max_features=config.max_features,
        neighbours=config.retrieval_pairs,
        max_view_angle_deg=config.max_view_angle_deg,
        reprojection_px=config.track_reprojection_px,
        min_triangulation_deg=config.min_triangulation_deg,
    )


def _solve(job: Job, frame_set: FrameSet, folder: Path) -> tuple[Reconstruction, dict[str, Any]]:
    from sld_core.sfm.solve import solve

    result = solve(frame_set, folder, job.config.sfm, job.config.seed, job.progress)
    source_of = {f.name: f.source for f in frame_set.frames}
    return result.reconstruction, {
        "pieces": list(result.pieces),
        "lost": {name: f"{reason} ({source_of[name]})" for name, reason in result.lost.items()},
        "reprojection_px": result.reprojection_px,
        "agreement": result.agreement,
        "lenses": list(result.lenses),
        "notes": list(result.notes),
    }


def make_metric(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.metric.align import align, moved

    reconstruction, frame_set = job.output_of("sfm"), job.output_of("frames")
    alignment = align(reconstruction, frame_set, job.config.metric, job.progress)
    write_reconstruction(folder, moved(reconstruction, alignment))
    # the map is in the frame of the given poses unless the images decided what is up
    in_given_frame = alignment.metric and alignment.upright in ("tf", "none")
    return {
        "metric": alignment.metric,
        "scale_source": alignment.source,
        "upright": alignment.upright,
        "world_frame": frame_set.world_frame if in_given_frame else "",
        "residual": alignment.residual,
        "notes": list(alignment.notes),
        "alignment": alignment.to_dict(),
    }


def make_depth(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.depth.stage import complete

    reconstruction, config = job.output_of("metric"), job.config
    metric = job.done("metric").found["metric"]
    report = complete(
        reconstruction, folder, config.depth, job.model, job.progress, metric, config.seed
    )
    found = asdict(report)
    return {"notes": list(found.pop("notes")), "depth": found}


def make_landmarks(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.data.formats.splits import split
    from sld_core.landmarks.selection import select

    job.progress(Progress("choosing landmarks", 0.0))
    reconstruction = _with_depth(job)
    split_F = split(reconstruction.frames, job.config.split)
    training = _training(reconstruction, split_F)
    matchability_N = None
    if job.config.landmarks.matchability_weight > 0:
        matchability_N = _matchability(job, training)
    chosen = select(training, job.config.landmarks, matchability_N)
    np.savez(
        folder / LANDMARKS,
        xyz_L3=chosen.xyz_L3,
        point_L=chosen.point_L,
        split_F=np.array(split_F),
    )
    counts = {part: split_F.count(part) for part in ("train", "val", "test")}
    return {"landmarks": len(chosen), "split": counts}


def _matchability(job: Job, training: Reconstruction) -> np.ndarray:
    from sld_core.landmarks.matchability import matchability
    from sld_core.models.backbone import Backbone

    config = job.config
    return matchability(
        training,
        Backbone(config.backbone),
        config.image.max_side_px,
        config.landmarks,
        np.random.default_rng(config.seed),
        job.progress,
    )


def make_labels(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.landmarks.normals import normals_of
    from sld_core.landmarks.visibility import label_and_report

    job.progress(Progress("labelling", 0.0))
    reconstruction, config = _with_depth(job), job.config.labels
    landmarks, split_F = job.output_of("landmarks")
    normals_L3 = None
    if config.use_normals:
        normals_L3 = normals_of(_training(reconstruction, split_F), landmarks, config)
    labels, report = label_and_report(reconstruction, landmarks, config, normals_L3)
    np.savez(folder / LABELS, visibility_FL=labels.visibility_FL)
    return {"labels": asdict(report)}


def make_dataset(job: Job, folder: Path) -> dict[str, Any]:
    from sld_core.data.formats.indoor6 import write_scene_data
    from sld_core.mapping.report.report import MapReport, write_map_report

    job.progress(Progress("writing the dataset", 0.0))
    reconstruction, visibility_FL = _with_depth(job), job.output_of("labels")
    landmarks, split_F = job.output_of("landmarks")
    found, seconds = job.found_before("dataset")
    # the dataset numbers its landmarks itself: it does not hold the points that `point_L` means
    numbered = replace(landmarks, point_L=np.arange(len(landmarks)))
    data = SceneData(
        reconstruction.frames,
        split_F,
        numbered,
        visibility_FL,
        found["metric"],
        found["world_frame"],
    )
    write_scene_data(job.output, data)
    job.progress(Progress("drawing the report", 0.5))
    summary = {key: value for key, value in found.items() if key not in NOT_IN_REPORT}
    report = MapReport(
        title=f"Map of {job.output.resolve().name}",
        summary=summary | {"components": len(found["pieces"])},
        frame_set=job.output_of("frames"),
        reconstruction=reconstruction,
        lost=found["lost"],
        landmarks=landmarks,
        visibility_FL=visibility_FL,
        split_F=split_F,
        depth_folder=job.work / "depth" if found["depth"]["source"] != "none" else None,
        seconds=seconds,
        notes=found["notes"],
    )
    write_map_report(job.output / REPORT, report)
    return {}


def _with_depth(job: Job) -> Reconstruction:
    """The metric reconstruction, whose frames have the completed depth where there is some."""
    reconstruction, path_of = job.output_of("metric"), job.output_of("depth")
    frames = tuple(replace(f, depth_path=path_of.get(f.name)) for f in reconstruction.frames)
    return replace(reconstruction, frames=frames)


def _training(reconstruction: Reconstruction, split_F: tuple[str, ...]) -> Reconstruction:
    """The reconstruction as the training frames see it: neither landmarks nor normals may depend on
    the others."""
    return without_frames(reconstruction, [i for i, part in enumerate(split_F) if part != "train"])
