"""The depth stage: a depth image per frame of a reconstruction, from the best source there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from sld_core import geometry
from sld_core.camera.images import read_depth, read_image
from sld_core.config.mapping import DepthConfig
from sld_core.depth import patch_match
from sld_core.depth.completion import method_of
from sld_core.depth.monocular import MonocularDepth
from sld_core.files import write_atomically
from sld_core.spread import spread
from sld_core.types import Frame, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

UNITS_PER_PIXEL_VALUE = 1000  # a 16-bit PNG holds thousandths of the world unit
SCALE_TOLERANCE = 0.1  # of measured depth against triangulated points
ASPECT_TOLERANCE = 0.03  # of a depth image against its image
UNUSED = (
    "the depth images are not used: they are in metres, and nothing tells the scale of this scene"
)


@dataclass(frozen=True)
class DepthReport:
    """What the depth stage did.

    `source` is sensor, patchmatch, completion or none, and `reason` why. `known` is the mean share
    of pixels that were measured (or triangulated), `filled` that of pixels completed. `errors`
    compare with triangulated points that the depths were not made from: measured_* where depth was
    measured, filled_* where it was completed; mae in world units, absrel, delta1, points."""

    source: str
    reason: str
    frames: int
    known: float
    filled: float
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def complete(
    reconstruction: Reconstruction,
    folder: Path,
    config: DepthConfig,
    model: Path | str | None,
    progress: Callable[[Progress], None],
    metric: bool = True,
    seed: int = 0,
) -> DepthReport:
    """Write `folder`/NAME.depth.png for every frame: 16 bit, thousandths of the world unit, 0 where
    there is none (or beyond 65.535), `config.max_side_px` on the longer side, pixel (x, y) of the
    image at (x / width, y / height) of it.

    Sensor depth is in metres and is used only where the world is, as `metric` says. `model` is a
    monocular network (depth.monocular); without one nothing is completed. Nothing is written where
    the source is none."""
    start, folder, frames = time.monotonic(), Path(folder), reconstruction.frames
    source, reason = choose_source(reconstruction, config, model, metric)
    log.info("depth from %s: %s", source, reason)
    ignored = config.source == "auto" and not metric and _measured(reconstruction)
    notes = [UNUSED] if ignored else []
    if source == "none":
        seconds = time.monotonic() - start
        return DepthReport(source, reason, 0, 0.0, 0.0, seconds, notes=tuple(notes))
    maps = {}
    if source == "patchmatch":
        maps = patch_match.patch_match(reconstruction, folder / "patchmatch")
    network = MonocularDepth(model, config.preprocessing) if model is not None else None
    filler = _Filler(network, config, seed) if network is not None else None
    judged = set(spread(range(len(frames)), config.held_out_frames))
    known_F, filled_F, judgements, unfilled, unreadable = [], [], [], 0, []
    for i, frame in enumerate(frames):
        size = _size(frame, config)
        points = _Points.of(reconstruction, i, size, config.max_point_error_px)
        try:
            known_hw = _known(source, frame, points, maps, size)
        except SldError as error:  # one damaged depth image must not cost all others
            unreadable.append(str(error))
            known_hw = np.zeros(size[::-1], np.float32)
        fill = filler.of(frame, known_hw) if filler is not None else None
        depth_hw = fill(known_hw) if fill else known_hw
        if i in judged and source == "completion":
            judgements += _judge_by_hiding(fill, points, size, config, seed)
        elif i in judged:
            judgements += _judge(depth_hw, known_hw, points, completed=fill is not None)
        if filler is not None and (depth_hw > 0).mean() < 0.999:
            unfilled += 1
        _write(folder, frame.name, depth_hw)
        known_F.append((known_hw > 0).mean())
        filled_F.append(((depth_hw > 0) & (known_hw == 0)).mean())
        progress(Progress("depth", (i + 1) / len(frames)))
    if len(unreadable) == len(frames):
        raise SldError(f"no depth image can be used: {unreadable[0]}")
    errors = _errors(judgements)
    notes += _notes(source, errors, unfilled, unreadable)
    known, filled = float(np.mean(known_F)), float(np.mean(filled_F))
    seconds = time.monotonic() - start
    return DepthReport(source, reason, len(frames), known, filled, seconds, errors, tuple(notes))


def choose_source(
    reconstruction: Reconstruction,
    config: DepthConfig,
    model: Path | str | None,
    metric: bool = True,
) -> tuple[str, str]:
    """(source, reason); SldError where the source that was asked for is not possible."""
    count = _measured(reconstruction)
    measured = f"{count} of {len(reconstruction.frames)} frames have measured depth"
    if config.source == "sensor" and not count:
        raise SldError(
            "source sensor: no frame has a depth image; expected RGB-D frames, or another "
            f"source ({patch_match.ALTERNATIVES})"
        )
    if config.source == "sensor" and not metric:
        raise SldError(
            "source sensor: measured depth is in metres and this scene is not; expected a scale "
            "(--distance, --tag-size, odometry, or depth that fits the images), or source auto"
        )
    if config.source == "completion" and model is None:
        raise SldError(
            "source completion: no monocular network was given; expected --model FILE.onnx, or the "
            "name of a transformers model"
        )
    if config.source == "none":
        return "none", "asked for"
    if config.source == "sensor" or (config.source == "auto" and count and metric):
        return "sensor", measured
    if config.source == "patchmatch" or (config.source == "auto" and patch_match.has_cuda()):
        return "patchmatch", f"{measured}; PatchMatch runs on CUDA"
    if model is not None:
        cuda = "CUDA" if patch_match.has_cuda() else "no CUDA"
        reason = f"{measured}, pycolmap has {cuda}: from triangulated points and {model}"
        return "completion", reason
    return "none", f"{measured}, pycolmap has no CUDA, no monocular network was given"


def _measured(reconstruction: Reconstruction) -> int:
    return sum(f.depth_path is not None for f in reconstruction.frames)


@dataclass(frozen=True)
class _Points:
    """Triangulated points of one frame, one for each pixel of its depth image that has any: the
    nearest."""

    x_K: np.ndarray
    y_K: np.ndarray
    z_K: np.ndarray

    @classmethod
    def of(
        cls, reconstruction: Reconstruction, i: int, size: tuple[int, int], max_error_px: float
    ) -> _Points:
        r, frame = reconstruction, reconstruction.frames[i]
        precise_M = r.error_px_N[r.obs_point_M] <= max_error_px
        mine = (r.obs_frame_M == i) & precise_M
        T_camera_world = geometry.invert(frame.T_world_camera)
        z_K = geometry.transform(T_camera_world, r.points_N3[r.obs_point_M[mine]])[:, 2]
        image_size = [frame.camera.width, frame.camera.height]
        xy_K2 = np.floor(r.obs_xy_M2[mine] / image_size * size).astype(int)
        good = (z_K > 0) & (xy_K2 >= 0).all(1) & (xy_K2 < size).all(1)
        order = np.argsort(z_K[good], kind="stable")
        x_K, y_K, z_K = xy_K2[good, 0][order], xy_K2[good, 1][order], z_K[good][order]
        _, first = np.unique(y_K * size[0] + x_K, return_index=True)
        return cls(x_K[first], y_K[first], z_K[first])

    def __getitem__(self, chosen) -> _Points:
        return _Points(self.x_K[chosen], self.y_K[chosen], self.z_K[chosen])

    def image(self, size: tuple[int, int]) -> np.ndarray:
        depth_HW = np.zeros(size[::-1], np.float32)
        depth_HW[self.y_K, self.x_K] = self.z_K
        return depth_HW


def _size(frame: Frame, config: DepthConfig) -> tuple[int, int]:
    """(width, height) of the depth image of a frame."""
    scale = min(1.0, config.max_side_px / max(frame.camera.width, frame.camera.height))
    return max(1, round(frame.camera.width * scale)), max(1, round(frame.camera.height * scale))


def _known(
    source: str, frame: Frame, points: _Points, maps: dict[str, Path], size: tuple[int, int]
) -> np.ndarray:
    """The depths (h, w) that are known before completion."""
    if source == "completion":
        return points.image(size)
    if source == "patchmatch" and frame.name in maps:
        return resampled(patch_match.read_depth_map(maps[frame.name]), size)
    if source == "sensor" and frame.depth_path is not None:
        return _sensor_depth(frame, size)
    return np.zeros(size[::-1], np.float32)


def _sensor_depth(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    depth_HW = read_depth(frame.depth_path)
    (height, width), camera = depth_HW.shape, frame.camera
    if abs(width * camera.height / (height * camera.width) - 1) > ASPECT_TOLERANCE:
        raise SldError(
            f"{frame.depth_path}: {width}x{height}, the image is {camera.width}x{camera.height}; "
            "expected depth registered to the image, of the same proportions"
        )
    return resampled(depth_HW, size)


def resampled(depth_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The depths at the pixel centres of an image of `size` (width, height) with the same field of
    view. Nothing is averaged: the mean of a near and a far surface is on neither."""
    height, width = depth_HW.shape
    x = ((np.arange(size[0]) + 0.5) / size[0] * width).astype(int)
    y = ((np.arange(size[1]) + 0.5) / size[1] * height).astype(int)
    return depth_HW[np.ix_(y, x)]


Fill = Callable[[np.ndarray], np.ndarray]  # known depths (h, w), 0 where there is none -> all


@dataclass(frozen=True)
class _Filler:
    """How known depths are completed."""

    network: MonocularDepth
    config: DepthConfig
    seed: int

    def of(self, frame: Frame, known_hw: np.ndarray) -> Fill | None:
        """The completion of a frame; None where too little is known."""
        if (known_hw > 0).sum() < self.config.min_known:
            return None
        size = known_hw.shape[::-1]
        image = read_image(frame.image_path)
        mono_hw = cv2.resize(self.network(image), size, interpolation=cv2.INTER_AREA)
        rgb_hw3 = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        method = method_of(self.config)

        def fill(known_hw: np.ndarray) -> np.ndarray:
            return method(known_hw, mono_hw, rgb_hw3, np.random.default_rng(self.seed))

        return fill


@dataclass(frozen=True)
class _Judgement:
    """Depths and those of points that they were not made from; `kind` is measured or filled."""

    kind: str
    depth_K: np.ndarray
    truth_K: np.ndarray


def _judge(
    depth_hw: np.ndarray, known_hw: np.ndarray, points: _Points, completed: bool
) -> list[_Judgement]:
    """The depth of a frame against points that it was not made from."""
    measured = known_hw[points.y_K, points.x_K] > 0
    parts = {"measured": points[measured]}
    if completed:
        parts["filled"] = points[~measured]
    return [_Judgement(kind, depth_hw[p.y_K, p.x_K], p.z_K) for kind, p in parts.items()]


def _judge_by_hiding(
    fill: Fill | None, points: _Points, size: tuple[int, int], config: DepthConfig, seed: int
) -> list[_Judgement]:
    """The same where depth was made from the points: some are hidden, and it is completed again."""
    hidden = np.random.default_rng(seed).random(len(points.z_K)) < config.held_out
    if fill is None or not hidden.any() or (~hidden).sum() < config.min_known:
        return []
    depth_hw, asked = fill(points[~hidden].image(size)), points[hidden]
    return [_Judgement("filled", depth_hw[asked.y_K, asked.x_K], asked.z_K)]


def _write(folder: Path, name: str, depth_hw: np.ndarray) -> None:
    path = folder / f"{name}.depth.png"
    values = np.round(depth_hw.astype(float) * UNITS_PER_PIXEL_VALUE)
    values[values > 65535] = 0
    _, data = cv2.imencode(".png", values.astype(np.uint16))
    write_atomically(path, data.tobytes())


def _errors(judgements: list[_Judgement]) -> dict[str, float]:
    out = {}
    for kind in ("measured", "filled"):
        same = [j for j in judgements if j.kind == kind]
        depth = np.concatenate([np.empty(0), *(j.depth_K for j in same)])
        truth = np.concatenate([np.empty(0), *(j.truth_K for j in same)])
        if not len(truth):
            continue
        ratio = np.maximum(depth / truth, truth / np.maximum(depth, 1e-9))
        out |= {
            f"{kind}_mae": float(np.abs(depth - truth).mean()),
            f"{kind}_absrel": float((np.abs(depth - truth) / truth).mean()),
            f"{kind}_delta1": float((ratio < 1.25).mean()),
            f"{kind}_scale": float(np.median(depth / truth)),
            f"{kind}_points": len(truth),
        }
    return out


def _notes(
    source: str, errors: dict[str, float], unfilled: int, unreadable: list[str]
) -> list[str]:
    notes = [f"left out: {error}" for error in unreadable]
    scale = errors.get("measured_scale", 1.0)
    if abs(scale - 1) > SCALE_TOLERANCE:
        notes.append(
            f"{source} depth is {scale:.2f} times that of the triangulated points: the "
            "reconstruction's scale is not the depth's"
        )
    if unfilled:
        notes.append(f"{unfilled} frames have too few known depths to be completed")
    return notes
