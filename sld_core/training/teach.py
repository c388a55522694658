"""Frames with poses -> a scene file: tracks, landmarks, labels, buffer, head, check. The whole offline path in one page."""
from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from sld_core import geometry, scene_file
from sld_core.config import SceneConfig
from sld_core.evaluate import HEAD_STAGE, QueryResult, accuracy
from sld_core.images import read_image
from sld_core.localizer import Localizer
from sld_core.mapping import labels as labelling
from sld_core.mapping import landmarks as landmarking
from sld_core.mapping import tracks
from sld_core.mapping.matchability import matchability
from sld_core.mapping.normals import normals_of
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.training import buffer as buffering
from sld_core.training import head as recipe
from sld_core.types import Frame, Progress, Reconstruction, Scene, SceneReport, SldError

log = logging.getLogger(__name__)

MIN_JURY = 3  # held-out frames that must all fail before a scene is refused


def teach(frames: Sequence[Frame], output: Path, name: str, config: SceneConfig, work: Path, device: str = "cpu",
          progress: Callable[[Progress], None] = lambda _: None, seconds_before: dict[str, float] | None = None) -> Scene:
    """Teach a scene from frames of one camera with poses, and write it to `output` once it has passed its check.

    `work` keeps the tracks: a second call with the same frames and track settings takes them from there.
    `seconds_before` are the stages already done, for the report. Returns the scene as read back from the file."""
    seconds = dict(seconds_before or {})
    tracks.check(frames)
    # far from the world's origin, as in UTM coordinates, single precision and pose solvers lose centimetres
    origin_3 = np.mean([f.T_world_camera[:3, 3] for f in frames], axis=0).round()
    frames = [_moved(f, -origin_3) for f in frames]
    report = _Overall(progress, seconds, len(frames), config)
    rng = np.random.default_rng(config.seed)
    backbone = Backbone(config.backbone).to(device)
    with report.stage("tracks"):
        whole = tracks.reconstruct_once(frames, work, config.tracks, config.seed, report)
    with report.stage("landmarks"):
        held_out = hold_out(len(frames), config.validation_fraction)
        seen = without(whole, held_out)
        angle_rad_F = upright_angles(seen.frames)
        match_N = None
        if config.landmarks.matchability_weight > 0:
            match_N = matchability(seen, backbone, config.image, device, np.random.default_rng(config.seed), report, config.landmarks,
                                   angle_rad_F)
        landmarks = landmarking.select(seen, config.landmarks, match_N)
        normals_L3 = normals_of(seen, landmarks, config.labels) if config.labels.use_normals else None
        labels = labelling.label(seen, landmarks, config.labels, normals_L3)
    with report.stage("buffer"):
        passes = config.buffer.augmented_passes if config.head.kind != "prototype" else 0
        buffer, whitening = buffering.fill(seen.frames, labels, angle_rad_F, backbone, config.buffer,
                                           config.image.max_side_px, device, rng, passes, report)
    with report.stage(HEAD_STAGE):
        if config.head.kind == "prototype":
            cells, curve = recipe.prototypes(buffer, len(landmarks), config.head), []
        else:
            cells, curve = recipe.train(buffer, len(landmarks), config.head, config.seed, device, report)
    counts = {"frames": len(frames), "points": len(whole.points_N3), "landmarks": len(landmarks), "cells": len(buffer)}
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    landmarks = dataclasses.replace(landmarks, xyz_L3=landmarks.xyz_L3 + origin_3)
    scene = Scene(name, landmarks, origin_3, SceneHead(whitening.cpu(), cells), frames[0].camera, rolls_rad, config,
                  SceneReport(seconds, counts, curve, {}))
    with report.stage("check"):
        scene = _check(scene, [_moved(whole.frames[i], origin_3) for i in held_out], output, backbone, device)
    return scene


def _moved(frame: Frame, by_3: np.ndarray) -> Frame:
    T = frame.T_world_camera.copy()
    T[:3, 3] += by_3
    return dataclasses.replace(frame, T_world_camera=T)


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


def without(reconstruction: Reconstruction, left_out: Sequence[int]) -> Reconstruction:
    """The reconstruction as seen by all frames but those of `left_out`."""
    if not len(left_out):
        return reconstruction
    keep_F = np.ones(len(reconstruction.frames), bool)
    keep_F[list(left_out)] = False
    new_index = np.cumsum(keep_F) - 1
    keep = keep_F[reconstruction.obs_frame_M]
    return dataclasses.replace(
        reconstruction, frames=tuple(f for f, k in zip(reconstruction.frames, keep_F) if k),
        obs_point_M=reconstruction.obs_point_M[keep], obs_frame_M=new_index[reconstruction.obs_frame_M[keep]],
        obs_xy_M2=reconstruction.obs_xy_M2[keep])


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
        if len(results) >= MIN_JURY and validation["accepted"] == 0:
            raise SldError(f"the scene recognises none of {len(results)} held-out frames ({results[0].reason}); it was not written: "
                           "record a slower drive with better light, or check that poses and camera belong together")
        scene = dataclasses.replace(scene, report=dataclasses.replace(scene.report, validation=validation))
        scene_file.save(scene, output)
        return scene_file.load(output)
    finally:
        with suppress(OSError):  # the error under way says more
            trial.unlink(missing_ok=True)


class _Overall:
    """Passes progress on with the seconds left of the whole job, from rough shares of each stage per frame."""

    def __init__(self, progress: Callable[[Progress], None], seconds: dict[str, float], frames: int, config: SceneConfig):
        trained = config.head.kind != "prototype"
        passes = 1 + (config.buffer.augmented_passes if trained else 0)
        # measured on 2 cores at 640x480; only their ratios matter once a stage is under way
        self.expected = {"tracks": 0.35 * frames, "landmarks": 1.0, "buffer": 0.08 * frames * passes,
                         HEAD_STAGE: config.head.samples / 100_000 if trained else 0.5, "check": 3.0}
        self.progress, self.seconds, self.start = progress, seconds, time.monotonic()
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
        self.progress(dataclasses.replace(progress, seconds_left=left))
