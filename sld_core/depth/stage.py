"""The depth stage: a depth image per frame of a reconstruction, from the best source there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
    of pixels that were measured (or triangulated), `filled` that of pixels completed. `errors` are
    judged by triangulated points that the depths were not made from: measured_* where depth was
    measured, filled_* where it was completed; mae in world units, absrel, delta1, points."""

    source: str
    reason: str
    frames: int
    known: float
    filled: float
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self)


def complete(
    reconstruction: Reconstruction,
    folder: Path,
    config: DepthConfig,
    model: Path | str | None,
    progress: Callable[[Progress], None],
    metric: bool = True,
) -> DepthReport:
    """Write `folder`/NAME.depth.png for every frame: 16 bit, thousandths of the world unit, 0 where
    there is none (or beyond 65.535), `config.max_side_px` on the longer side, pixel (x, y) of the
    image at (x / width, y / height) of it.

    Sensor depth is in metres: it is of use only where the world is, as `metric` says. `model` is a
    monocular network (depth.monocular); without one nothing is completed. Nothing is written where
    the source is none."""
    start, folder = time.monotonic(), Path(folder)
    source, reason = choose_source(reconstruction, config, model, metric)
    log.info("depth from %s: %s", source, reason)
    unused = (
        [UNUSED] if config.source == "auto" and not metric and _measured(reconstruction) else []
    )
    if source == "none":
        return DepthReport(
            source, reason, 0, 0.0, 0.0, time.monotonic() - start, notes=tuple(unused)
        )
    maps = (
        patch_match.patch_match(reconstruction, folder / "patchmatch")
        if source == "patchmatch"
        else {}
    )
    network = MonocularDepth(model, config.preprocessing) if model is not None else None
    judged = set(spread(range(len(reconstruction.frames)), config.held_out_frames))
    shares, judgements, unfilled, unreadable = [], [], 0, []
    for i, frame in enumerate(reconstruction.frames):
        size = _size(frame, config)
        points = _Points.of(reconstruction, i, size, config.max_point_error_px)
        try:
            known = _known(source, frame, points, maps, size)
        except SldError as error:  # one damaged depth image must not cost all others
            unreadable.append(str(error))
            known = np.zeros(size[::-1], np.float32)
        depth, judgement = _complete_frame(
            frame, known, points, source, network, config, i in judged
        )
        unfilled += network is not None and (depth > 0).mean() < 0.999
        _write(folder, frame.name, depth)
        shares.append(((known > 0).mean(), ((depth > 0) & (known == 0)).mean()))
        judgements += judgement
        progress(Progress("depth", (i + 1) / len(reconstruction.frames)))
    if len(unreadable) == len(shares):
        raise SldError(f"no depth image can be used: {unreadable[0]}")
    errors, known_filled = _errors(judgements), np.mean(shares, axis=0)
    return DepthReport(
        source,
        reason,
        len(shares),
        float(known_filled[0]),
        float(known_filled[1]),
        time.monotonic() - start,
        errors,
        (*unused, *_notes(source, errors, unfilled, unreadable)),
    )


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
            "source sensor: measured depth is in metres and this scene is not; expected a "
            "scale (--distance, --tag-size, "
            "odometry, or depth that fits the images), or source auto"
        )
    if config.source == "completion" and model is None:
        raise SldError(
            "source completion: no monocular network was given; expected --model FILE.onnx, or "
            "the name of a transformers model"
        )
    if config.source == "none":
        return "none", "asked for"
    if config.source == "sensor" or (config.source == "auto" and count and metric):
        return "sensor", measured
    if config.source == "patchmatch" or (config.source == "auto" and patch_match.has_cuda()):
        return "patchmatch", f"{measured}; PatchMatch runs on CUDA"
    if model is not None:
        return (
            "completion",
            f"{measured}, pycolmap has {'' if patch_match.has_cuda() else 'no '}CUDA: from "
            f"triangulated points and {model}",
        )
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
        frame = reconstruction.frames[i]
        mine = (reconstruction.obs_frame_M == i) & (
            reconstruction.error_px_N[reconstruction.obs_point_M] <= max_error_px
        )
        z_K = geometry.transform(
            geometry.invert(frame.T_world_camera),
            reconstruction.points_N3[reconstruction.obs_point_M[mine]],
        )[:, 2]
        xy_K2 = np.floor(
            reconstruction.obs_xy_M2[mine] / [frame.camera.width, frame.camera.height] * size
        ).astype(int)
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
    if source == "patchmatch":
        return (
            resampled(patch_match.read_depth_map(maps[frame.name]), size)
            if frame.name in maps
            else np.zeros(size[::-1], np.float32)
        )
    return (
        _sensor_depth(frame, size)
        if frame.depth_path is not None
        else np.zeros(size[::-1], np.float32)
    )


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
    x, y = (
        ((np.arange(new) + 0.5) / new * old).astype(int)
        for new, old in zip(size, depth_HW.shape[::-1])
    )
    return depth_HW[np.ix_(y, x)]


def _complete_frame(
    frame: Frame,
    known_hw,
    points: _Points,
    source: str,
    network: MonocularDepth | None,
    config: DepthConfig,
    judge: bool,
) -> tuple[np.ndarray, list[tuple[str, np.ndarray, np.ndarray]]]:
    """The depth (h, w) of a frame; and, to judge it by, ("measured" or "filled", depths, depths of
    points it was not made from)."""
    fill = None
    if network is not None and (known_hw > 0).sum() >= config.min_known:
        fill = _filler(frame, network, config, known_hw.shape)
    depth_hw = fill(known_hw) if fill else known_hw
    if not judge or not len(points.z_K):
        return depth_hw, []
    if source == "completion":
        hidden = np.random.default_rng(config.seed).random(len(points.z_K)) < config.held_out
        if fill is None or not hidden.any() or (~hidden).sum() < config.min_known:
            return depth_hw, []
        asked = points[hidden]
        return depth_hw, [
            (
                "filled",
                fill(points[~hidden].image(known_hw.shape[::-1]))[asked.y_K, asked.x_K],
                asked.z_K,
            )
        ]
    measured = known_hw[points.y_K, points.x_K] > 0
    parts = [("measured", points[measured])] + ([("filled", points[~measured])] if fill else [])
    return depth_hw, [(kind, depth_hw[p.y_K, p.x_K], p.z_K) for kind, p in parts]


def _filler(
    frame: Frame, network: MonocularDepth, config: DepthConfig, shape: tuple[int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    image = read_image(frame.image_path)
    small = lambda pixels: cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    mono_hw, rgb_hw3, method = small(network(image)), small(image), method_of(config)
    return lambda known_hw: method(known_hw, mono_hw, rgb_hw3, np.random.default_rng(config.seed))


def _write(folder: Path, name: str, depth_hw: np.ndarray) -> None:
    path = folder / f"{name}.depth.png"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SldError(f"frame name {name!r}: its depth image would be outside {folder}")
    values = np.round(depth_hw.astype(float) * UNITS_PER_PIXEL_VALUE)
    values[values > 65535] = 0
    _, data = cv2.imencode(".png", values.astype(np.uint16))
    write_atomically(path, data.tobytes())


def _errors(judgements: list[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, float]:
    out = {}
    for kind in ("measured", "filled"):
        pairs = [(depth, truth) for k, depth, truth in judgements if k == kind and len(truth)]
        if pairs:
            depth, truth = (np.concatenate(part).astype(float) for part in zip(*pairs))
            relative = np.abs(depth - truth) / truth
            ratio = np.maximum(depth / truth, truth / np.maximum(depth, 1e-9))
            out |= {
                f"{kind}_mae": float(np.abs(depth - truth).mean()),
                f"{kind}_absrel": float(relative.mean()),
                f"{kind}_delta1": float((ratio < 1.25).mean()),
                f"{kind}_scale": float(np.median(depth / truth)),
                f"{kind}_points": len(truth),
            }
    return out


def _notes(
    source: str, errors: dict[str, float], unfilled: int, unreadable: list[str]
) -> tuple[str, ...]:
    notes = [f"left out: {error}" for error in unreadable]
    scale = errors.get("measured_scale", 1.0)
    if abs(scale - 1) > SCALE_TOLERANCE:
        notes.append(
            f"{source} depth is {scale:.2f} times that of the triangulated points: the "
            "reconstruction's scale is not the depth's"
        )
    if unfilled:
        notes.append(f"{unfilled} frames have too few known depths to be completed")
    return tuple(notes)
