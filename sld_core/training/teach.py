"""Frames with poses, or a labelled dataset -> a scene file. The whole offline path in one page.

`teach` makes tracks, landmarks and labels itself; `teach_scene_data` is given them. Both make a lesson of it and go on alike:
buffer, head, check."""
from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from sld_core import scene_file
from sld_core.config import SceneConfig
from sld_core.evaluate import HEAD_STAGE, UNITLESS, QueryResult, accuracy
from sld_core.images import read_image
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.training import buffer as buffering
from sld_core.training import head as recipe
from sld_core.training.lesson import MIN_JURY, Lesson, from_data, from_frames, moved, upright_angles
from sld_core.types import Frame, Progress, Scene, SceneData, SceneReport, SldError

log = logging.getLogger(__name__)


def teach(frames: Sequence[Frame], output: Path, name: str, config: SceneConfig, work: Path, device: str = "cpu",
          progress: Callable[[Progress], None] = lambda _: None, seconds_before: dict[str, float] | None = None) -> Scene:
    """Teach a scene from frames of one camera with poses, and write it to `output` once it has passed its check.

    `work` keeps the tracks: a second call with the same frames and track settings takes them from there.
    `seconds_before` are the stages already done, for the report. Returns the scene as read back from the file."""
    report = _Overall(progress, dict(seconds_before or {}), _expected_s(len(frames), config, with_tracks=True))
    backbone = Backbone(config.backbone).to(device)
    lesson = from_frames(frames, work, config, backbone, report, report.stage)
    return _teach(lesson, output, name, config, backbone, device, report, {"frames": len(frames)})


def teach_scene_data(data: SceneData, output: Path, name: str, config: SceneConfig, device: str = "cpu",
                     progress: Callable[[Progress], None] = lambda _: None, seconds_before: dict[str, float] | None = None) -> Scene:
    """Teach a scene from a labelled dataset, and write it to `output` once it has passed its check.

    Learns all landmarks of `data` (see `lesson.first_landmarks`) as they are labelled. The scene is metric where `data` is."""
    config = replace(config, landmarks=replace(config.landmarks, count=len(data.landmarks)))
    lesson = from_data(data, config.validation_fraction)
    report = _Overall(progress, dict(seconds_before or {}), _expected_s(len(lesson.frames), config, with_tracks=False))
    return _teach(lesson, output, name, config, Backbone(config.backbone).to(device), device, report, {"frames": len(lesson.frames)})


def _teach(lesson: Lesson, output: Path, name: str, config: SceneConfig, backbone: Backbone, device: str, report: _Overall,
           counts: dict[str, int]) -> Scene:
    """What both ways share: lesson -> buffer, head, check -> the scene file."""
    landmarks, angle_rad_F = lesson.landmarks, upright_angles(lesson.frames)
    trained = config.head.kind != "prototype"
    with report.stage("buffer"):
        rng, passes = np.random.default_rng(config.seed), config.buffer.augmented_passes if trained else 0
        buffer, whitening = buffering.fill(lesson.frames, lesson.labels, angle_rad_F, backbone, config.buffer,
                                           config.image.max_side_px, device, rng, passes, report)
    with report.stage(HEAD_STAGE):
        if trained:
            cells, curve = recipe.train(buffer, len(landmarks), config.head, config.seed, device, report)
        else:
            cells, curve = recipe.prototypes(buffer, len(landmarks), config.head), []
    counts = counts | lesson.counts | {"landmarks": len(landmarks), "cells": len(buffer)}
    camera = Counter(f.camera for f in lesson.frames).most_common(1)[0][0]
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    landmarks = replace(landmarks, xyz_L3=landmarks.xyz_L3 + lesson.origin_3)
    scene = Scene(name, landmarks, lesson.origin_3, SceneHead(whitening.cpu(), cells), camera, rolls_rad, config,
                  SceneReport(report.seconds, counts, curve, {}), lesson.metric)
    with report.stage("check"):
        return _check(scene, [moved(f, lesson.origin_3) for f in lesson.jury], output, backbone, device)


# the check -----------------------------------------------------------------------------------------------------------

def _check(scene: Scene, frames: Sequence[Frame], output: Path, backbone: Backbone, device: str) -> Scene:
    """Write the scene beside `output`, read it back, try it on the held-out frames, and only then put it in place."""
    trial = output.with_name(f".{output.name}.trial")
    try:
        scene_file.save(scene, trial)
        localizer = Localizer(scene_file.load(trial), device, backbone)
        results = []
        for frame in frames:
            answer = localizer.localize(read_image(frame.image_path), frame.camera)
            results.append(QueryResult(frame.name, frame.T_world_camera,
                                       answer.pose.T_world_camera if answer.pose else None, answer.reason))
        validation = accuracy(results) if results else {"queries": 0}
        if not scene.metric:  # what is counted in centimetres means nothing
            validation = {key: value for key, value in validation.items() if key in UNITLESS}
        if len(results) >= MIN_JURY and validation["accepted"] == 0:
            raise SldError(f"the scene recognises none of {len(results)} held-out frames ({results[0].reason}); it was not written: "
                           "record a slower drive with better light, or check that poses and camera belong together")
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
    return before | {"buffer": 0.08 * frames * passes, HEAD_STAGE: config.head.samples / 100_000 if trained else 0.5, "check": 3.0}


class _Overall:
    """Passes progress on with the seconds left of the whole job, from the seconds expected of each stage."""

    def __init__(self, progress: Callable[[Progress], None], seconds: dict[str, float], expected: dict[str, float]):
        self.progress, self.seconds, self.expected, self.start = progress, seconds, expected, time.monotonic()
        self.now = ""

    @contextmanager
    def stage(self, name: str):
        self.now, start = name, time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        log.info("%s: %.1f s", name, self.seconds[name])

    def __call__(self, progress: Progress) -> None:
        done = sum(self.expected.get(name, 0.0) for name in self.seconds)
        ahead = sum(s for name, s in self.expected.items() if name not in self.seconds) - self.expected[self.now]
        current = self.expected[self.now]
        speed = (time.monotonic() - self.start) / max(done + current * progress.fraction, 1e-3)
        left = (current * (1 - progress.fraction) + ahead) * (speed if done + current * progress.fraction > 2 else 1.0)
        self.progress(replace(progress, seconds_left=left))
