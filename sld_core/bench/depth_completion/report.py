"""The report on depth completion: images before and after, and loss curves of the paper's
regressor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from sld_core import html
from sld_core.bench.depth_completion.trials import Trial
from sld_core.depth.completion import DEFAULT

UNKNOWN_RGB = (90, 90, 90)


def colored(depth_HW: np.ndarray, near: float, far: float) -> np.ndarray:
    """(H, W, 3) uint8 RGB of depths from `near` (red) to `far` (blue) on a scale of inverse depth;
    unknown depth (0) is grey."""
    known = depth_HW > 0
    inverse = 1 / np.clip(np.where(known, depth_HW, far), near, far)
    level = (inverse - 1 / far) / max(1 / near - 1 / far, 1e-9)
    picture_bgr = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_TURBO)
    picture_rgb = picture_bgr[..., ::-1].copy()
    picture_rgb[~known] = UNKNOWN_RGB
    return picture_rgb


def comparison(trial: Trial, methods: Sequence[str] = ("paper", DEFAULT)) -> np.ndarray:
    """(H, W', 3) uint8 RGB: the image, its true depth, the part that was not masked, and what the
    methods made of that, on one colour scale."""
    truth = trial.depth_HW[trial.depth_HW > 0]
    near, far = np.percentile(truth, [1, 99])
    depths = [
        trial.depth_HW,
        np.where(trial.masked_HW, 0, trial.depth_HW),
        *(trial.completed[name].depth_HW for name in methods),
    ]
    return np.hstack([trial.rgb_HW3, *(colored(depth, near, far) for depth in depths)])


def loss_curves(trials: Sequence[Trial]) -> Figure:
    """Training loss of the paper's regressor, a line per image."""
    figure, axes = html.figure_axes(8.4, 3.6)
    for trial in trials:
        axes.plot(np.arange(1, len(trial.loss_curve) + 1), trial.loss_curve, lw=1)
    axes.set(xlabel="epoch", ylabel="loss (half the squared error, m²)", yscale="log")
    return figure


def write_report(
    path: Path, title: str, trials: Sequence[Trial], rows: Sequence[Sequence[str]]
) -> None:
    """Write an HTML page: the table of errors, each image before and after, the loss curves."""
    sections = [html.table(rows[1:], rows[0])]
    sections += [
        html.figure(
            comparison(t),
            f"{t.name}: image, measured depth, the part that methods saw, the paper's completion, "
            f"the default's ({DEFAULT}). Red is near, grey unknown.",
        )
        for t in trials
    ]
    sections.append(
        html.figure(
            loss_curves(trials),
            "Training loss of the paper's regressor, a line per image.",
        )
    )
    html.write_page(Path(path), title, sections)
