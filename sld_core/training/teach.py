"""Frames with poses, or a labelled dataset -> a scene file. The whole offline path on one page.

`teach` makes tracks, landmarks and labels itself; `teach_scene_data` is given them. Both then do
the same with the training set: fill the buffer, train the head, validate."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from sld_core import scene_file
from sld_core.camera.images import read_image
from sld_core.config.scene import FineConfig, SceneConfig
from sld_core.evaluation.metrics import HEAD_STAGE, UNITLESS, QueryResult, accuracy
from sld_core.fine_pass import Templates
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.scene_file import Scene
from sld_core.training import (
    feature_buffer,
    feature_map_buffer,
    fine_templates,
    train_cell_head,
    train_heatmap_head,
)
from sld_core.training.distributed import all_of, from_main
from sld_core.training.run import Run
from sld_core.training.training_set import (
    MIN_VALIDATION,
    TrainingSet,
    from_data,
    from_frames,
    moved,
)
from sld_core.training.working_images import upright, upright_angles
from sld_core.types import Frame, Progress, SceneData, SceneReport, SldError

log = logging.getLogger(__name__)

LossCurve = list[tuple[int, float]]


@dataclass(frozen=True)
class SceneOutput:
    """The scene file to write: its path, the scene's name, and the seconds of the stages before
    teaching, for its report."""

    path: Path
    name: str
    seconds_before: dict[str, float] = field(default_factory=dict)


def teach(
    frames: Sequence[Frame],
    work: Path,
    config: SceneConfig,
    output: SceneOutput,
    run: Run,
    metric: bool = True,
) -> Scene:
    """Teach a scene from frames with poses, which are in metres where `metric`, and write it once
    it has been validated.

    `work` keeps the tracks for a second call with the same frames and track settings. The seed is
    config.seed. Returns the scene as read back from the file. Under torchrun every rank calls this
    with the same arguments: all fill the buffer and train, rank 0 does the rest."""
    job = _Job(run, _expected_s(len(frames), config, with_tracks=True), output)
    backbone = Backbone(config.backbone, config.backbone_weights).to(run.device)
    training_set = from_main(
        lambda: from_frames(frames, work, config, backbone, job.progress, job.stage, metric),
        run.world,
    )
    return _teach(training_set, len(frames), config, backbone, output, job)


def teach_scene_data(data: SceneData, config: SceneConfig, output: SceneOutput, run: Run) -> Scene:
    """Teach a scene from a labelled dataset, and write it once it has been validated.

    Learns all landmarks of `data` (see `training_set.first_landmarks`) as they are labelled. The
    scene is metric where `data` is. The seed is config.seed."""
    training_set = from_data(data, config.validation_fraction)
    config = replace(config, landmarks=replace(config.landmarks, count=len(data.landmarks)))
    frames = len(training_set.frames)
    job = _Job(run, _expected_s(frames, config, with_tracks=False), output)
    backbone = Backbone(config.backbone, config.backbone_weights).to(run.device)
    return _teach(training_set, frames, config, backbone, output, job)


def scene_of(
    training_set: TrainingSet, head: nn.Module, config: SceneConfig, name: str, report: SceneReport
) -> Scene:
    """The scene of a trained head. Its camera is that of most frames."""
    angle_rad_F = upright_angles(training_set.frames)
    xyz_L3 = training_set.landmarks.xyz_L3 + training_set.origin_3
    return Scene(
        name,
        replace(training_set.landmarks, xyz_L3=xyz_L3),
        training_set.origin_3,
        head,
        Counter(f.camera for f in training_set.frames).most_common(1)[0][0],
        (float(angle_rad_F.min()), float(angle_rad_F.max())),
        config,
        report,
        training_set.metric,
    )


def _teach(
    training_set: TrainingSet,
    frames: int,
    config: SceneConfig,
    backbone: Backbone,
    output: SceneOutput,
    job: _Job,
) -> Scene:
    """What both ways share: training set -> buffer, head, validation -> the scene file."""
    run = replace(job.run, seed=config.seed, progress=job.progress)
    if config.head.kind == "heatmap":
        folder = output.path.parent
        head, curve, size = _heatmap_head(training_set, backbone, config, folder, job, run)
    else:
        head, curve, size = _cell_head(training_set, backbone, config, job, run)
    counts = {"frames": frames} | training_set.counts | size
    counts |= {"landmarks": len(training_set.landmarks)}
    report = SceneReport(job.seconds, counts, curve, {})
    scene = scene_of(training_set, head, config, output.name, report)
    if config.fine.use:
        with job.stage("templates"):
            templates, fine = from_main(lambda: _templates(training_set, config, job), run.world)
        scene = replace(scene, templates=templates, config=replace(config, fine=fine))
    validation = [moved(f, training_set.origin_3) for f in training_set.validation]
    with job.stage("check"):
        return from_main(
            lambda: _validate_and_write(scene, validation, output.path, backbone, run.device),
            run.world,
        )


# the heads ----------------------------------------------------------------------------------------


def _cell_head(
    training_set: TrainingSet, backbone: Backbone, config: SceneConfig, job: _Job, run: Run
) -> tuple[SceneHead, LossCurve, dict[str, int]]:
    """A head that sees each cell alone, its loss curve, and the size of its training data."""
    trained = config.head.kind != "prototype"
    images = upright(training_set.frames, config.image.max_side_px)
    landmarks = len(training_set.landmarks)
    with job.stage("buffer"):
        passes = config.buffer.augmented_passes if trained else 0
        buffer, whitening = feature_buffer.fill(
            images, training_set.labels, backbone, config.buffer, passes, run
        )
    with job.stage(HEAD_STAGE):
        if trained:
            cells, curve = train_cell_head.train(buffer, landmarks, config.head, run)
        else:
            cells, curve = train_cell_head.prototypes(buffer, landmarks, config.head), []
    return SceneHead(whitening.cpu(), cells), curve, {"cells": len(buffer)}


def _heatmap_head(
    training_set: TrainingSet,
    backbone: Backbone,
    config: SceneConfig,
    folder: Path,
    job: _Job,
    run: Run,
) -> tuple[nn.Module, LossCurve, dict[str, int]]:
    """The paper's head, its loss curve, and the size of its training data. Maps that do not fit in
    RAM are kept in `folder`."""
    with job.stage("buffer"):
        buffer, whitening = feature_map_buffer.fill(training_set, backbone, config, folder, run)
    with job.stage(HEAD_STAGE):
        head, curve = train_heatmap_head.train(buffer, whitening, config, run)
    return head, curve, {"maps": sum(all_of(len(buffer), run.world))}


def _templates(
    training_set: TrainingSet, config: SceneConfig, job: _Job
) -> tuple[Templates, FineConfig]:
    """The templates of the fine pass, and its settings, fitted to them."""
    templates = fine_templates.learn(training_set, config, job.progress)
    return templates, fine_templates.calibrated(templates, training_set, config)


# validation ---------------------------------------------------------------------------------------


def _validate_and_write(
    scene: Scene, frames: Sequence[Frame], path: Path, backbone: Backbone, device: str
) -> Scene:
    """Write the scene beside `path`, read it back, localize the held-out frames with it, and only
    then put it in place."""
    trial = path.with_name(f".{path.name}.trial")
    try:
        scene_file.save(scene, trial)
        localizer = Localizer(scene_file.load(trial), device, backbone)
        results = [_localized(localizer, frame) for frame in frames]
        validation = accuracy(results) if results else {"queries": 0}
        if not scene.metric:  # centimetres would mean nothing
            validation = {key: value for key, value in validation.items() if key in UNITLESS}
        if len(results) >= MIN_VALIDATION and validation["accepted"] == 0:
            raise SldError(
                f"the scene recognises none of {len(results)} held-out frames "
                f"({results[0].reason}); it was not written: "
                "record a slower drive with better light, or check that poses and camera "
                "belong together"
            )
        scene = replace(scene, report=replace(scene.report, validation=validation))
        scene_file.save(scene, path)
        return scene_file.load(path)
    finally:
        with suppress(OSError):  # the error being raised says more
            trial.unlink(missing_ok=True)


def _localized(localizer: Localizer, frame: Frame) -> QueryResult:
    answer = localizer.localize(read_image(frame.image_path), frame.camera)
    T = answer.pose.T_world_camera if answer.pose else None
    return QueryResult(frame.name, frame.T_world_camera, T, answer.reason)


# progress -----------------------------------------------------------------------------------------


def _expected_s(frames: int, config: SceneConfig, with_tracks: bool) -> dict[str, float]:
    """Seconds of each stage, measured on 2 cores at 640x480. Only their ratios matter once a stage
    has run for a while."""
    trained = config.head.kind != "prototype"
    passes = 1 + (config.buffer.augmented_passes if trained else 0)
    before = {"tracks": 0.35 * frames, "landmarks": 1.0} if with_tracks else {}
    head_s = {
        "prototype": 0.5,
        "cells": config.head.samples / 100_000,
        "heatmap": train_heatmap_head.expected_s(config.head.heatmap),
    }
    return before | {
        "buffer": 0.08 * frames * passes,
        HEAD_STAGE: head_s[config.head.kind],
        "templates": 0.015 * frames if config.fine.use else 0.0,
        "check": 3.0,
    }


class _Job:
    """Times the stages, and reports progress with the seconds left of the whole job, which follow
    from the seconds expected of each stage."""

    def __init__(self, run: Run, expected_s: dict[str, float], output: SceneOutput):
        self.run, self.expected_s = run, expected_s
        self.seconds = dict(output.seconds_before)  # of finished stages
        self.current, self.start = "", time.monotonic()

    @contextmanager
    def stage(self, name: str):
        self.current, start = name, time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        log.info("%s: %.1f s", name, self.seconds[name])

    def progress(self, progress: Progress) -> None:
        left = {name: s for name, s in self.expected_s.items() if name not in self.seconds}
        done = sum(self.expected_s.values()) - sum(left.values())
        done += left[self.current] * progress.fraction
        seconds_left = sum(left.values()) - left[self.current] * progress.fraction
        if done > 2:  # enough to tell how fast this machine is
            seconds_left *= (time.monotonic() - self.start) / done
        self.run.progress(replace(progress, seconds_left=seconds_left))
