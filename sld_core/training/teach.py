"""Frames with poses, or a labelled dataset -> a scene file. The whole offline path in one page.

`teach` makes tracks, landmarks and labels itself; `teach_scene_data` is given them. Both make a
training_set of it and go on alike: buffer, head, check."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core import scene_file
from sld_core.camera.images import read_image
from sld_core.config.scene import SceneConfig
from sld_core.evaluation.metrics import HEAD_STAGE, UNITLESS, QueryResult, accuracy
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.scene_file import Scene
from sld_core.training import feature_buffer as buffering
from sld_core.training import feature_map_buffer
from sld_core.training import train_cell_head as recipe
from sld_core.training import train_heatmap_head as heatmap_recipe
from sld_core.training.distributed import ALONE, World, all_of, from_main
from sld_core.training.training_set import (
    MIN_VALIDATION,
    TrainingSet,
    from_data,
    from_frames,
    moved,
    upright_angles,
)
from sld_core.types import Frame, Progress, SceneData, SceneReport, SldError

log = logging.getLogger(__name__)


def teach(
    frames: Sequence[Frame],
    output: Path,
    name: str,
    config: SceneConfig,
    work: Path,
    device: str = "cpu",
    progress: Callable[[Progress], None] = lambda _: None,
    seconds_before: dict[str, float] | None = None,
    world: World = ALONE,
    metric: bool = True,
) -> Scene:
    """Teach a scene from frames with poses, which are in metres where `metric`, and write it to
    `output` once it has passed its check.

    `work` keeps the tracks: a second call with the same frames and track settings takes them from
    there. `seconds_before` are the stages already done, for the report. Returns the scene as read
    back from the file. Under torchrun every rank of `world` calls this with the same arguments: all
    fill the buffer and train, rank 0 does the rest."""
    report = _Overall(
        progress, dict(seconds_before or {}), _expected_s(len(frames), config, with_tracks=True)
    )
    backbone = Backbone(config.backbone, config.backbone_weights).to(device)
    training_set = from_main(
        lambda: from_frames(frames, work, config, backbone, report, report.stage, metric), world
    )
    return _teach(
        training_set, output, name, config, backbone, device, report, {"frames": len(frames)}, world
    )


def teach_scene_data(
    data: SceneData,
    output: Path,
    name: str,
    config: SceneConfig,
    device: str = "cpu",
    progress: Callable[[Progress], None] = lambda _: None,
    seconds_before: dict[str, float] | None = None,
    world: World = ALONE,
) -> Scene:
    """Teach a scene from a labelled dataset, and write it to `output` once it has passed its check.

    Learns all landmarks of `data` (see `training_set.first_landmarks`) as they are labelled. The
    scene is metric where `data` is."""
    config = replace(config, landmarks=replace(config.landmarks, count=len(data.landmarks)))
    training_set = from_data(data, config.validation_fraction)
    report = _Overall(
        progress,
        dict(seconds_before or {}),
        _expected_s(len(training_set.frames), config, with_tracks=False),
    )
    backbone = Backbone(config.backbone, config.backbone_weights).to(device)
    return _teach(
        training_set,
        output,
        name,
        config,
        backbone,
        device,
        report,
        {"frames": len(training_set.frames)},
        world,
    )


def _teach(
    training_set: TrainingSet,
    output: Path,
    name: str,
    config: SceneConfig,
    backbone: Backbone,
    device: str,
    report: _Overall,
    counts: dict[str, int],
    world: World,
) -> Scene:
    """What both ways share: training_set -> buffer, head, check -> the scene file."""
    landmarks, angle_rad_F = training_set.landmarks, upright_angles(training_set.frames)
    learnt = training_set, angle_rad_F, config, backbone, device, report, world
    head, curve, size = (
        _heatmap_head(*learnt, output.parent)
        if config.head.kind == "heatmap"
        else _cell_head(*learnt)
    )
    counts = counts | training_set.counts | size | {"landmarks": len(landmarks)}
    camera = Counter(f.camera for f in training_set.frames).most_common(1)[0][0]
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    landmarks = replace(landmarks, xyz_L3=landmarks.xyz_L3 + training_set.origin_3)
    scene = Scene(
        name,
        landmarks,
        training_set.origin_3,
        head,
        camera,
        rolls_rad,
        config,
        SceneReport(report.seconds, counts, curve, {}),
        training_set.metric,
    )
    with report.stage("check"):
        return from_main(
            lambda: _check(
                scene,
                [moved(f, training_set.origin_3) for f in training_set.validation],
                output,
                backbone,
                device,
            ),
            world,
        )


# the heads ----------------------------------------------------------------------------------------


def _cell_head(
    training_set: TrainingSet,
    angle_rad_F: np.ndarray,
    config: SceneConfig,
    backbone: Backbone,
    device: str,
    report: _Overall,
    world: World,
):
    """A head that looks at each cell alone, its loss curve, and how much it learned from."""
    trained = config.head.kind != "prototype"
    with report.stage("buffer"):
        passes = config.buffer.augmented_passes if trained else 0
        buffer, whitening = buffering.fill(
            training_set.frames,
            training_set.labels,
            angle_rad_F,
            backbone,
            config.buffer,
            config.image.max_side_px,
            device,
            config.seed,
            passes,
            report,
            world,
        )
    with report.stage(HEAD_STAGE):
        if trained:
            cells, curve = recipe.train(
                buffer, len(training_set.landmarks), config.head, config.seed, device, report, world
            )
        else:
            cells, curve = recipe.prototypes(buffer, len(training_set.landmarks), config.head), []
    return SceneHead(whitening.cpu(), cells), curve, {"cells": len(buffer)}


def _heatmap_head(
    training_set: TrainingSet,
    angle_rad_F: np.ndarray,
    config: SceneConfig,
    backbone: Backbone,
    device: str,
    report: _Overall,
    world: World,
    folder: Path,
):
    """The paper's head, its loss curve, and how much it learned from; maps that RAM does not hold
    are kept in `folder`."""
    with report.stage("buffer"):
        buffer, whitening = feature_map_buffer.fill(
            training_set, angle_rad_F, backbone, config, device, folder, report, world
        )
    with report.stage(HEAD_STAGE):
        head, curve = heatmap_recipe.train(buffer, whitening, config, device, report, world=world)
    return head, curve, {"maps": sum(all_of(len(buffer), world))}


# the check ----------------------------------------------------------------------------------------


def _check(
    scene: Scene, frames: Sequence[Frame], output: Path, backbone: Backbone, device: str
) -> Scene:
    """Write the scene beside `output`, read it back, try it on the held-out frames, and only then
    put it in place."""
    trial = output.with_name(f".{output.name}.trial")
    try:
        scene_file.save(scene, trial)
        localizer = Localizer(scene_file.load(trial), device, backbone)
        results = []
        for frame in frames:
            answer = localizer.localize(read_image(frame.image_path), frame.camera)
            results.append(
                QueryResult(
                    frame.name,
                    frame.T_world_camera,
                    answer.pose.T_world_camera if answer.pose else None,
                    answer.reason,
                )
            )
        validation = accuracy(results) if results else {"queries": 0}
        if not scene.metric:  # what is counted in centimetres means nothing
            validation = {key: value for key, value in validation.items() if key in UNITLESS}
        if len(results) >= MIN_VALIDATION and validation["accepted"] == 0:
            raise SldError(
                f"the scene recognises none of {len(results)} held-out frames "
                f"({results[0].reason}); it was not written: "
                "record a slower drive with better light, or check that poses and camera "
                "belong together"
            )
        scene = replace(scene, report=replace(scene.report, validation=validation))
        scene_file.save(scene, output)
        return scene_file.load(output)
    finally:
        with suppress(OSError):  # the error under way says more
            trial.unlink(missing_ok=True)


def _expected_s(frames: int, config: SceneConfig, with_tracks: bool) -> dict[str, float]:
    """Measured on 2 cores at 640x480; only their ratios matter once a stage is under way."""
    trained = config.head.kind != "prototype"
    passes = 1 + (config.buffer.augmented_passes if trained else 0)
    before = {"tracks": 0.35 * frames, "landmarks": 1.0} if with_tracks else {}
    head_s = {
        "prototype": 0.5,
        "cells": config.head.samples / 100_000,
        "heatmap": heatmap_recipe.expected_s(config.head.heatmap),
    }
    return before | {
        "buffer": 0.08 * frames * passes,
        HEAD_STAGE: head_s[config.head.kind],
        "check": 3.0,
    }


class _Overall:
    """Passes progress on with the seconds left of the whole job, from the seconds expected of each
    stage."""

    def __init__(
        self,
        progress: Callable[[Progress], None],
        seconds: dict[str, float],
        expected: dict[str, float],
    ):
        self.progress, self.seconds, self.expected, self.start = (
            progress,
            seconds,
            expected,
            time.monotonic(),
        )
        self.now = ""

    @contextmanager
    def stage(self, name: str):
        self.now, start = name, time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        log.info("%s: %.1f s", name, self.seconds[name])

    def __call__(self, progress: Progress) -> None:
        done = sum(self.expected.get(name, 0.0) for name in self.seconds)
        ahead = (
            sum(s for name, s in self.expected.items() if name not in self.seconds)
            - self.expected[self.now]
        )
        current = self.expected[self.now]
        speed = (time.monotonic() - self.start) / max(done + current * progress.fraction, 1e-3)
        left = (current * (1 - progress.fraction) + ahead) * (
            speed if done + current * progress.fraction > 2 else 1.0
        )
        self.progress(replace(progress, seconds_left=left))
