"""A self-contained HTML page about a scene and the accuracy of queries in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from sld_core import geometry, html
from sld_core.evaluation.metrics import Metrics, QueryResult, table_rows
from sld_core.types import Camera, Localization, SceneReport

TRUTH, ESTIMATE, FAILED = "#2a7f62", "#d1495b", "#e6a100"
GREEN, RED, ORANGE = (60, 220, 90), (235, 60, 60), (255, 170, 0)  # of `overlay`
FROM_ABOVE = (
    "From above: the mapping drive, and the true and the estimated position of every query. "
    "Red lines join each estimate to its truth."
)
ERRORS = "Errors of the accepted fixes; the lines mark 2, 5 and 10 cm or degrees."


def write_report(
    path: Path,
    title: str,
    metrics: Metrics,
    results: Sequence[QueryResult],
    *,
    scene: SceneReport | None = None,
    map_poses: Sequence[np.ndarray] = (),
    landmarks_L3: np.ndarray | None = None,
    overlays: Sequence[tuple[str, np.ndarray]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write one HTML file with all pictures inside. `map_poses` are camera to map, 4x4; `overlays`
    are captions with images (H, W, 3) uint8 RGB, such as `overlay` draws."""
    sections = [
        _metrics_table(metrics),
        *map(html.paragraph, notes),
        html.figure(_trajectory(results, map_poses, landmarks_L3), FROM_ABOVE),
        *(html.figure(image, caption) for caption, image in overlays),
        html.figure(_error_histogram(results), ERRORS),
        *(_teaching(scene) if scene else ()),
        _failures(results),
    ]
    html.write_page(path, title, sections)


def overlay(
    image_HW3: np.ndarray, camera: Camera, localization: Localization, landmarks_L3: np.ndarray
) -> np.ndarray:
    """The image with a dot for every detection, joined to the projection of its landmark: green
    where it carried the pose, red where it did not, orange where there is no pose."""
    image, scale = _enlarged(image_HW3)
    found, pose = localization.detections, localization.pose
    if pose is None:
        projected, colors = found.xy_px_K2, [ORANGE] * len(found)
    else:
        T_camera_world = geometry.invert(pose.T_world_camera)
        projected, _ = geometry.project(camera, T_camera_world, landmarks_L3[found.landmark_K])
        colors = [GREEN if inlier else RED for inlier in pose.inlier_K]
    for xy, target, color in zip(found.xy_px_K2, projected, colors):
        dot = _sixteenths(xy * scale)
        if np.isfinite(target).all():
            end = _sixteenths(target * scale)
            cv2.line(image, dot, end, color, 1, cv2.LINE_AA, shift=4)
        cv2.circle(image, dot, 16 * 3, (0, 0, 0), 2, cv2.LINE_AA, shift=4)
        cv2.circle(image, dot, 16 * 3, color, 1, cv2.LINE_AA, shift=4)
    return image


def _enlarged(image_HW3: np.ndarray) -> tuple[np.ndarray, float]:
    """A copy at least 960 pixels wide, on which the marks are small."""
    scale = max(1.0, 960 / image_HW3.shape[1])
    return cv2.resize(image_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), scale


def _sixteenths(xy: np.ndarray) -> tuple[int, int]:
    """A position for OpenCV's drawing with shift=4: in sixteenths of a pixel, centres at
    integers."""
    x, y = np.round(16 * (np.clip(xy, -2000, 9000) - 0.5)).astype(int)
    return int(x), int(y)


def _metrics_table(metrics: Metrics) -> str:
    rows = table_rows(metrics)
    return html.table(rows, ("", "~/pose", "TF") if len(rows[0]) == 3 else ())


def _teaching(scene: SceneReport) -> list[str]:
    """How the head was trained, where the time went, and what was noted."""
    curve = []
    if scene.loss_curve:
        figure, axes = html.figure_axes(8.4, 3)
        axes.plot(*np.transpose(scene.loss_curve), color=TRUTH)
        axes.set(xlabel="step", ylabel="loss")
        curve = [html.figure(figure, "Loss while the head was trained.")]
    caption = f"Where the {scene.teach_s:.0f} s of teaching the scene went."
    stages = html.figure(html.stage_times(scene.seconds), caption)
    return [*curve, stages, *map(html.paragraph, scene.notes)]


def _failures(results: Sequence[QueryResult]) -> str:
    """Queries without a fix, with the reasons, and wrong fixes."""
    lines = [f"{r.name}: {r.reason}" for r in results if not r.accepted]
    lines += [
        f"{r.name}: wrong by {100 * r.errors[0]:.0f} cm, {np.degrees(r.errors[1]):.1f} deg"
        for r in results
        if r.is_wrong_fix
    ]
    if not lines:
        return html.paragraph("Every query was localized, none of them wrongly.")
    return html.heading("Queries without a right fix") + html.bullets(lines)


def _trajectory(
    results: Sequence[QueryResult], map_poses: Sequence[np.ndarray], landmarks_L3: np.ndarray | None
) -> Figure:
    up = geometry.mean_up(np.stack([*(r.T_true for r in results), *map_poses]))
    to_plan = html.seen_from_above(up)
    figure, axes = html.figure_axes(8.4, 6.6)
    true = to_plan(_positions([r.T_true for r in results]))
    shown = np.stack(true, 1)
    if landmarks_L3 is not None:
        landmarks = to_plan(landmarks_L3)
        axes.scatter(*landmarks, s=3, color=html.QUIET, label="landmarks")
        # wrong fixes far away and stray landmarks must not shrink the picture
        shown = np.concatenate([shown, np.percentile(landmarks, [2, 98], axis=1)])
    if len(map_poses):
        drive = to_plan(_positions(map_poses))
        axes.plot(*drive, ".-", color=html.BLUE, lw=0.6, ms=3, label="mapping drive")
    axes.plot(*true, "o", color=TRUTH, ms=5, mfc="none", label="query, truth")
    fixed = [r for r in results if r.accepted]
    if fixed:
        x, y = to_plan(_positions([r.T_estimated for r in fixed]))
        x_true, y_true = to_plan(_positions([r.T_true for r in fixed]))
        axes.plot(np.stack([x, x_true]), np.stack([y, y_true]), color=ESTIMATE, lw=1)
        axes.plot(x, y, ".", color=ESTIMATE, ms=4, label="query, estimate")
    if len(fixed) < len(results):
        missed = to_plan(_positions([r.T_true for r in results if not r.accepted]))
        axes.plot(*missed, "x", color=FAILED, ms=8, label="query without a fix")
    html.legend(axes, beside=True)
    low, high = shown.min(0) - 0.5, shown.max(0) + 0.5
    axes.set(aspect="equal", xlabel="metres", ylabel="metres")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _positions(poses: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([T[:3, 3] for T in poses]).reshape(-1, 3)


def _error_histogram(results: Sequence[QueryResult]) -> Figure:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    errors = np.array([r.errors for r in results if r.accepted]).reshape(-1, 2)
    for axes, values, unit in zip(
        figure.subplots(1, 2), (100 * errors[:, 0], np.degrees(errors[:, 1])), ("cm", "degrees")
    ):
        axes.hist(np.clip(values, 0.02, 100), bins=np.geomspace(0.02, 100, 45), color=TRUTH)
        for limit in (2, 5, 10):
            axes.axvline(limit, color=ESTIMATE, lw=0.8, ls=":")
        axes.set(xscale="log", xlabel=unit, ylabel="queries")
        axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    return figure
