"""Trials of depth completion: frames with measured depth, part of it hidden, all methods on the
same pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sld_core.bench.depth_completion.errors import DepthErrors, evaluate
from sld_core.bench.depth_completion.masking import hide
from sld_core.camera.images import read_depth, read_image
from sld_core.depth import paper
from sld_core.depth.completion import DEFAULT, METHODS, Completion, checked
from sld_core.depth.monocular import MonocularDepth
from sld_core.spread import spread
from sld_core.types import Frame, Progress, SldError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One image: truth in metres, what was hidden of it, and per method errors, completed depth and
    seconds."""

    name: str
    rgb_HW3: np.ndarray
    depth_HW: np.ndarray
    hidden_HW: np.ndarray
    errors: dict[str, DepthErrors]
    completed_HW: dict[str, np.ndarray]
    seconds: dict[str, float]
    mono_seconds: float
    loss_curve: list[float]  # of the paper's regressor


def run_trials(
    frames: Sequence[Frame],
    model: Path | str,
    kind: str,
    max_images: int,
    preprocessing: str = "auto",
    seed: int = 0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Trial]:
    """All METHODS on at most `max_images` frames that have depth, spread over the list, at the
    resolution of their depth. Frames that cannot be used are left out and named; SldError where
    none is left."""
    frames = [f for f in frames if f.depth_path is not None]
    if not frames:
        raise SldError(
            "none of these frames has a depth image; expected NAME.depth.png beside NAME.color.jpg"
        )
    chosen = spread(range(len(frames)), max_images)
    network, trials, left_out = MonocularDepth(model, preprocessing), [], []
    for k, i in enumerate(chosen):
        try:
            trials.append(_trial(frames[i], network, kind, np.random.default_rng([seed, i])))
        except SldError as error:  # one damaged or empty depth image must not cost all others
            left_out.append(f"{frames[i].name}: {error}")
        progress(Progress("completing depth", (k + 1) / len(chosen)))
    if not trials:
        raise SldError(f"none of {len(chosen)} frames can be used; the first, {left_out[0]}")
    for reason in left_out:
        log.warning("left out: %s", reason)
    return trials


def _trial(frame: Frame, network: MonocularDepth, kind: str, rng: np.random.Generator) -> Trial:
    image, depth_HW = read_image(frame.image_path), read_depth(frame.depth_path)
    start = time.perf_counter()
    mono = network(image)
    mono_seconds = time.perf_counter() - start
    mono_HW, rgb_HW3 = (
        cv2.resize(pixels, depth_HW.shape[::-1], interpolation=cv2.INTER_AREA)
        for pixels in (mono, image)
    )
    hidden_HW = hide(depth_HW, rgb_HW3, kind, rng)
    if not hidden_HW.any():
        raise SldError(f"{frame.depth_path}: too few known depths to hide some of them")
    fits: list[paper.PaperFit] = []
    methods = METHODS | {"paper": _remembering(fits)}
    results = {
        name: evaluate(method, depth_HW, mono_HW, rgb_HW3, hidden_HW, np.random.default_rng(0))
        for name, method in methods.items()
    }
    errors, completed, seconds = (
        {name: result[part] for name, result in results.items()} for part in range(3)
    )
    return Trial(
        frame.name,
        rgb_HW3,
        depth_HW,
        hidden_HW,
        errors,
        completed,
        seconds,
        mono_seconds,
        fits[0].loss_curve,
    )


def _remembering(fits: list[paper.PaperFit]) -> Completion:
    """The paper's method, whose fits are appended to `fits`."""

    def complete(known_HW, mono_HW, rgb_HW3, rng):
        fits.append(paper.fit(known_HW, mono_HW, rgb_HW3))
        return paper.predict_image(fits[-1], mono_HW, rgb_HW3)

    return checked(complete)


def summary(trials: Sequence[Trial]) -> dict[str, float | int | str]:
    """Means over the images, as JSON-ready numbers: METHOD_mae_mm, _mse_mm2, _absrel, _delta1,
    _s_per_image; the default method also as `default_*`."""
    out: dict[str, float | int | str] = {
        "images": len(trials),
        "hidden_pixels": int(sum(t.hidden_HW.sum() for t in trials)),
        "default_method": DEFAULT,
        "mono_s_per_image": float(np.mean([t.mono_seconds for t in trials])),
    }
    for prefix, name in {"default": DEFAULT, **{name: name for name in METHODS}}.items():
        errors = [t.errors[name] for t in trials]
        out |= {
            f"{prefix}_mae_mm": 1e3 * float(np.mean([e.mae for e in errors])),
            f"{prefix}_mse_mm2": 1e6 * float(np.mean([e.mse for e in errors])),
            f"{prefix}_absrel": float(np.mean([e.absrel for e in errors])),
            f"{prefix}_delta1": float(np.mean([e.delta1 for e in errors])),
            f"{prefix}_s_per_image": float(np.mean([t.seconds[name] for t in trials])),
        }
    return out
