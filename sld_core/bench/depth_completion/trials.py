"""Trials of depth completion: frames with measured depth, part of it masked, and all methods on the
same pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sld_core.bench.depth_completion.errors import DepthErrors, depth_errors
from sld_core.bench.depth_completion.masking import mask
from sld_core.camera.images import read_depth, read_image
from sld_core.depth import paper
from sld_core.depth.completion import DEFAULT, METHODS, Completion, checked, known_only
from sld_core.depth.monocular import MonocularDepth
from sld_core.spread import spread
from sld_core.types import Frame, Progress, SldError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completed:
    """What one method made of one image."""

    depth_HW: np.ndarray
    errors: DepthErrors
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One image: true depth in metres, what was masked of it, and the results of the methods by
    name."""

    name: str
    rgb_HW3: np.ndarray
    depth_HW: np.ndarray
    masked_HW: np.ndarray
    completed: dict[str, Completed]
    mono_seconds: float
    loss_curve: list[float]  # of the paper's regressor


def run_trials(
    frames: Sequence[Frame],
    network: MonocularDepth,
    kind: str,
    max_images: int,
    seed: int,
    progress: Callable[[Progress], None],
) -> list[Trial]:
    """Run all METHODS on at most `max_images` frames that have depth, spread over the list, at the
    resolution of their depth. `kind` is that of masking.mask. Frames that cannot be used are left
    out and logged; SldError where none is left."""
    frames = [f for f in frames if f.depth_path is not None]
    if not frames:
        raise SldError(
            "none of these frames has a depth image; expected NAME.depth.png beside NAME.color.jpg"
        )
    chosen = spread(range(len(frames)), max_images)
    trials, left_out = [], []
    for k, i in enumerate(chosen):
        try:
            trials.append(_trial(frames[i], network, kind, np.random.default_rng([seed, i])))
        except SldError as error:  # one damaged or empty depth image must not stop the others
            left_out.append(f"{frames[i].name}: {error}")
        progress(Progress("completing depth", (k + 1) / len(chosen)))
    if not trials:
        raise SldError(f"none of {len(chosen)} frames can be used; the first, {left_out[0]}")
    for reason in left_out:
        log.warning("left out: %s", reason)
    return trials


def _trial(frame: Frame, network: MonocularDepth, kind: str, rng: np.random.Generator) -> Trial:
    image_HW3, depth_HW = read_image(frame.image_path), read_depth(frame.depth_path)
    start = time.perf_counter()
    mono_HW = network(image_HW3)
    mono_seconds = time.perf_counter() - start
    size = depth_HW.shape[::-1]
    mono_HW = cv2.resize(mono_HW, size, interpolation=cv2.INTER_AREA)
    rgb_HW3 = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA)
    masked_HW = mask(depth_HW, rgb_HW3, kind, rng)
    if not masked_HW.any():
        raise SldError(f"{frame.depth_path}: too few known depths to mask some of them")
    fits: list[paper.PaperFit] = []
    methods = METHODS | {"paper": _with_fit_kept(fits)}
    completed = {
        name: complete(method, depth_HW, mono_HW, rgb_HW3, masked_HW)
        for name, method in methods.items()
    }
    curve = fits[0].loss_curve
    return Trial(frame.name, rgb_HW3, depth_HW, masked_HW, completed, mono_seconds, curve)


def _with_fit_kept(fits: list[paper.PaperFit]) -> Completion:
    """The paper's method, whose fits are appended to `fits`."""

    def paper_completion(known_HW, mono_HW, rgb_HW3, rng):
        fits.append(paper.fit(known_HW, mono_HW, rgb_HW3))
        return paper.predict_image(fits[-1], mono_HW, rgb_HW3)

    return checked(paper_completion)


def complete(
    method: Completion,
    depth_HW: np.ndarray,
    mono_HW: np.ndarray,
    rgb_HW3: np.ndarray,
    masked_HW: np.ndarray,
) -> Completed:
    """Run one method, which sees 0 at the masked pixels, and measure its errors there."""
    known_HW = np.where(masked_HW, np.float32(0), known_only(depth_HW))
    start = time.perf_counter()
    completed_HW = method(known_HW, mono_HW, rgb_HW3, np.random.default_rng(0))
    seconds = time.perf_counter() - start
    return Completed(completed_HW, depth_errors(completed_HW, depth_HW, masked_HW), seconds)


def summary(trials: Sequence[Trial]) -> dict[str, float | int | str]:
    """Means over the images, as JSON-ready numbers: METHOD_mae_mm, _mse_mm2, _absrel, _delta1,
    _s_per_image; those of the default method also as `default_*`."""
    out: dict[str, float | int | str] = {
        "images": len(trials),
        "masked_pixels": int(sum(t.masked_HW.sum() for t in trials)),
        "default_method": DEFAULT,
        "mono_s_per_image": float(np.mean([t.mono_seconds for t in trials])),
    }
    for prefix, name in {"default": DEFAULT, **{name: name for name in METHODS}}.items():
        results = [t.completed[name] for t in trials]
        out |= {
            f"{prefix}_mae_mm": 1e3 * float(np.mean([r.errors.mae for r in results])),
            f"{prefix}_mse_mm2": 1e6 * float(np.mean([r.errors.mse for r in results])),
            f"{prefix}_absrel": float(np.mean([r.errors.absrel for r in results])),
            f"{prefix}_delta1": float(np.mean([r.errors.delta1 for r in results])),
            f"{prefix}_s_per_image": float(np.mean([r.seconds for r in results])),
        }
    return out
