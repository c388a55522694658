"""Frames with poses, or a labelled dataset -> a scene file. The whole offline path in one page.

`teach` makes tracks, landmarks and labels itself; `teach_scene_data` is given them. Both make a lesson of it and go on alike:
buffer, head, check."""
from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from sld_core import geometry, scene_file
from sld_core.config import RANGES, SceneConfig
from sld_core.evaluate import HEAD_STAGE, UNITLESS, QueryResult, accuracy
from sld_core.images import read_image
from sld_core.localizer import Localizer
from sld_core.mapping import labels as labelling
from sld_core.mapping import landmarks as landmarking
from sld_core.mapping import tracks
from sld_core.mapping.matchability import matchability
from sld_core.mapping.normals import normals_of
from sld_core.mapping.subset import without
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.training import buffer as buffering
from sld_core.training import head as recipe
from sld_core.types import Frame, Labels, Landmarks, Progress, Scene, SceneData, SceneReport, SldError, Visibility

log = logging.getLogger(__name__)

MIN_JURY = 3  # held-out frames that must all fail before a scene is refused


def teach(frames: Sequence[Frame], output: Path, name: str, config: SceneConfig, work: Path, device: str = "cpu",
          progress: Callable[[Progress], None] = lambda _: None, seconds_before: dict[str, float] | None = None) -> Scene:
    """Teach a scene from frames of one camera with poses, and write it to `output` once it has passed its check.

    `work` keeps the tracks: a second call with the same frames and track settings takes them from there.
    `seconds_before` are the stages already done, for the report. Returns the scene as read back from the file."""
    tracks.check(frames)
    origin_3 = _origin(frames)
    frames = [_moved(f, -origin_3) for f in frames]
    report = _Overall(progress, dict(seconds_before or {}), _expected_s(len(frames), config, with_tracks=True))
    backbone = Backbone(config.backbone).to(device)
    with report.stage("tracks"):
        whole = tracks.reconstruct_once(frames, work, config.tracks, config.seed, report)
    with report.stage("landmarks"):
        held_out = hold_out(len(frames), config.validation_fraction)
        seen = without(whole, held_out)
        match_N = None
        if config.landmarks.matchability_weight > 0:
            match_N = matchability(seen, backbone, config.image, device, np.random.default_rng(config.seed), report, config.landmarks,
                                   upright_angles(seen.frames))
        landmarks = landmarking.select(seen, config.landmarks, match_N)
        normals_L3 = normals_of(seen, landmarks, config.labels) if config.labels.use_normals else None
        labels = labelling.label(seen, landmarks, config.labels, normals_L3)
    lesson = Lesson(seen.frames, landmarks, labels, tuple(whole.frames[i] for i in held_out), origin_3, metric=True)
    counts = {"frames": len(frames), "points": len(whole.points_N3)}
    return _teach(lesson, output, name, config, backbone, device, report, counts)


def teach_scene_data(data: SceneData, output: Path, name: str, config: SceneConfig, device: str = "cpu",
                     progress: Callable[[Progress], None] = lambda _: None, seconds_before: dict[str, float] | None = None) -> Scene:
    """Teach a scene from a labelled dataset, and write it to `output` once it has passed its check.

    Learns all landmarks of `data` (see `first_landmarks`) from the frames of split "train", as they are labelled. The check is
    on frames of "val", about as many as `teach` holds out; where there are none, training frames are held out. Frames of
    "test" are never looked at. Frames may come from several cameras. The scene is metric where `data` is."""
    config = replace(config, landmarks=replace(config.landmarks, count=len(data.landmarks)))
    train, jury = split_rows(data.split_F, config.validation_fraction)
    _check_data(data, train)
    learned = [data.frames[i] for i in train]
    report = _Overall(progress, dict(seconds_before or {}), _expected_s(len(train), config, with_tracks=False))
    origin_3 = _origin(learned)
    frames = tuple(_moved(f, -origin_3) for f in learned)
    landmarks = replace(data.landmarks, xyz_L3=data.landmarks.xyz_L3 - origin_3)
    labels = Labels(data.visibility_FL[train], projections(frames, landmarks.xyz_L3))
    lesson = Lesson(frames, landmarks, labels, tuple(_moved(data.frames[i], -origin_3) for i in jury), origin_3, data.metric)
    return _teach(lesson, output, name, config, Backbone(config.backbone).to(device), device, report, {"frames": len(train)})


@dataclass(frozen=True)
class Lesson:
    """What a head is taught, in coordinates less `origin_3`: labelled `frames` to learn from, row i of `labels` is that of
    frame i, and the `jury`, frames that are kept for the check."""

    frames: tuple[Frame, ...]
    landmarks: Landmarks
    labels: Labels
    jury: tuple[Frame, ...]
    origin_3: np.ndarray
    metric: bool


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
    counts = counts | {"landmarks": len(landmarks), "cells": len(buffer)}
    camera = Counter(f.camera for f in lesson.frames).most_common(1)[0][0]
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    landmarks = replace(landmarks, xyz_L3=landmarks.xyz_L3 + lesson.origin_3)
    scene = Scene(name, landmarks, lesson.origin_3, SceneHead(whitening.cpu(), cells), camera, rolls_rad, config,
                  SceneReport(report.seconds, counts, curve, {}), lesson.metric)
    with report.stage("check"):
        return _check(scene, [_moved(f, lesson.origin_3) for f in lesson.jury], output, backbone, device)


def _origin(frames: Sequence[Frame]) -> np.ndarray:
    """Far from the world's origin, as in UTM coordinates, single precision and pose solvers lose centimetres."""
    return np.mean([f.T_world_camera[:3, 3] for f in frames], axis=0).round()


def _moved(frame: Frame, by_3: np.ndarray) -> Frame:
    T = frame.T_world_camera.copy()
    T[:3, 3] += by_3
    return replace(frame, T_world_camera=T)


def upright_angles(frames: Sequence[Frame]) -> np.ndarray:
    """By how much to turn each image (radians) so that all stand upright; zeros when none is off by more than 10 degrees,
    as on a robot that does not roll."""
    T_F44 = np.stack([f.T_world_camera for f in frames])
    up = geometry.mean_up(T_F44)
    angle_F = np.array([geometry.upright_angle(T, up) for T in T_F44])
    return angle_F if np.degrees(np.abs(angle_F)).max() > 10 else np.zeros(len(frames))


def hold_out(count: int, fraction: float, chunk: int = 5) -> list[int]:
    """Indices of about `fraction` of `count` frames, in contiguous chunks spread over the drive: neighbours of a test
    frame are nearly the test frame."""
    wanted = round(count * fraction)
    if wanted == 0:
        return []
    chunks = max(1, round(wanted / chunk))
    size = round(wanted / chunks)
    starts = (np.arange(chunks) + 0.5) * count / chunks - size / 2
    return [i for start in starts.round().astype(int) for i in range(start, start + size)]


# a labelled dataset --------------------------------------------------------------------------------------------------

def first_landmarks(data: SceneData, count: int) -> SceneData:
    """The dataset with the first `count` of its landmarks only: they are in order of choice."""
    if count > len(data.landmarks):
        raise SldError(f"{count} landmarks were asked for, the dataset has {len(data.landmarks)}; ask for at most that many, or map it "
                       "again with more")
    landmarks = Landmarks(data.landmarks.xyz_L3[:count], data.landmarks.point_L[:count])
    return replace(data, landmarks=landmarks, visibility_FL=data.visibility_FL[:, :count])


def split_rows(split_F: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Rows to learn from and rows for the check, about `fraction` of both together, or MIN_JURY: of "val", evenly thinned,
    or else held out from "train"."""
    train, val = ([i for i, split in enumerate(split_F) if split == name] for name in ("train", "val"))
    if not val:
        jury = [train[i] for i in hold_out(len(train), fraction)]
        return [i for i in train if i not in jury], jury
    wanted = round(fraction * (len(train) + len(val)))
    if fraction > 0:
        wanted = min(max(wanted, MIN_JURY), len(val))
    return train, [val[i] for i in np.linspace(0, len(val) - 1, wanted).round().astype(int)]


def projections(frames: Sequence[Frame], xyz_L3: np.ndarray) -> np.ndarray:
    """Where each frame has each landmark (F, L, 2), pixels, NaN behind the camera."""
    return np.stack([geometry.project(f.camera, geometry.invert(f.T_world_camera), xyz_L3)[0] for f in frames])


def _check_data(data: SceneData, train: list[int]) -> None:
    """SldError unless there is enough to learn."""
    low, high = RANGES["count"]
    if not low <= len(data.landmarks) <= high:
        raise SldError(f"the dataset has {len(data.landmarks)} landmarks; expected {low} to {high}" +
                       (", choose fewer with --landmarks N" if len(data.landmarks) > high else ""))
    if not train:
        raise SldError(f"none of {len(data.frames)} frames of the dataset is for training; expected frames of split train")
    shown = int((data.visibility_FL[train] == Visibility.VISIBLE).any(0).sum())
    if shown < low:
        raise SldError(f"only {shown} of {len(data.landmarks)} landmarks are visible in any of {len(train)} training frames; expected at "
                       f"least {low}: are landmarks and visibility of the same dataset?")


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
