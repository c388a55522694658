"""A map from above: camera paths and points, and which viewpoints see enough landmarks.

The colours can be told apart by the colour-blind (Okabe and Ito)."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial import cKDTree

from sld_core import geometry, html
from sld_core.mapping.report.timeline import LOST
from sld_core.spread import spread
from sld_core.types import Frame, Landmarks, Reconstruction

SESSIONS = ("#0072b2", "#cc79a7", "#009e73", "#56b4e9", "#e69f00")
OTHERS = "#7b6a58"  # of all sessions beyond those with a colour of their own
DARK = "#3d444b"
CLOUD = LinearSegmentedColormap.from_list("cloud", ["#d3d9de", "#a9b2bb", "#737d88"])
ARROWS = 60  # viewing directions drawn in one picture
DOTS = 30_000  # points drawn in one picture


def plan(
    reconstruction: Reconstruction,
    lost: Collection[str] = (),
    landmarks: Landmarks | None = None,
    *,
    up_3: np.ndarray | None = (0, 0, 1),
    metric: bool = True,
) -> Figure:
    """The points from above as a cloud, the landmarks, and each session's path with the directions
    its images look in.

    `lost` names images without a pose: where some lie between two registered ones, the path is
    dotted in orange. `up_3` is the world's up; None where that is not known: then it is that of the
    images. Stray points do not shrink the picture."""
    view = _view_of(reconstruction, landmarks, up_3, metric)
    tall = view.shape > 0.8  # its legend is beside it, else above
    height = view.height(6.5) - 0.5 if tall else view.height(8.4)
    figure, axes = html.figure_axes(9.4, height)
    _draw_cloud(axes, view, reconstruction.points_N3)
    label = f"{len(reconstruction.points_N3):,} points"
    handles = [Line2D([], [], color="#8b959f", marker="s", ls="", label=label)]
    if landmarks is not None and len(landmarks):
        axes.scatter(*view.to_plan(landmarks.xyz_L3).T, s=7, color=DARK, lw=0, zorder=2)
        label = f"{len(landmarks):,} landmarks"
        handles.append(Line2D([], [], color=DARK, marker=".", ls="", label=label))
    handles += _draw_sessions(axes, view, reconstruction.frames, lost)
    html.legend(axes, handles, beside=tall)
    frames = len(reconstruction.frames)
    far = f"; {view.outside:,} of them outside the picture" if view.outside else ""
    html.headline(
        figure, f"From above: {frames:,} of {frames + len(lost):,} images have a pose{far}"
    )
    for _ in range(2):  # the layout is right only once ticks and legend have their size
        figure.draw_without_rendering()
    return figure


def coverage(
    reconstruction: Reconstruction,
    landmarks: Landmarks,
    count_F: np.ndarray,
    minimum: int = 20,
    *,
    up_3: np.ndarray | None = (0, 0, 1),
    metric: bool = True,
) -> Figure:
    """Every viewpoint from above, coloured by how many landmarks are VISIBLE from it (`count_F`),
    and a histogram; viewpoints that see fewer than `minimum` are ringed: near those a robot will
    hardly be localized."""
    view = _view_of(reconstruction, landmarks, up_3, metric)
    wide = view.shape < 0.5  # the histogram is below, else beside
    height = view.height(7.5) + 1.7 if wide else max(view.height(5.0), 3.8)
    figure = Figure(figsize=(9.4, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if wide:
        above, histogram = figure.subplots(2, height_ratios=(view.height(7.5), 2))
    else:
        above, histogram = figure.subplots(1, 2, width_ratios=(2.4, 1))
    for axes in (above, histogram):
        axes.spines[["top", "right"]].set_visible(False)
    _draw_counts(above, view, landmarks, count_F, minimum)
    _draw_histogram(histogram, count_F, minimum)
    few = int((count_F < minimum).sum())
    ringed = " (ringed)" if few else ""
    html.headline(
        figure,
        f"{few:,} of {len(count_F):,} viewpoints see fewer than {minimum:,} landmarks{ringed}",
    )
    figure.draw_without_rendering()
    return figure


@dataclass(frozen=True)
class _View:
    """What a picture from above is drawn with: world points (N, 3) to the picture's plane (N, 2);
    camera centres and viewing directions there (length 1 where level); the corners of the picture;
    how many cameras are too far away to be in it."""

    to_plan: Callable[[np.ndarray], np.ndarray]
    xy_F2: np.ndarray
    uv_F2: np.ndarray
    low_2: np.ndarray
    high_2: np.ndarray
    outside: int
    labels: tuple[str, str]

    @property
    def shape(self) -> float:
        """Height over width."""
        extent = self.high_2 - self.low_2
        return float(extent[1] / extent[0])

    def height(self, width: float) -> float:
        """Inches of a picture whose axes are `width` inches wide, with its title and legend."""
        return float(np.clip(width * self.shape, 2.0, 7.0)) + 1.5

    def frame(self, axes: Axes) -> None:
        axes.set(
            aspect="equal",
            xlim=(self.low_2[0], self.high_2[0]),
            ylim=(self.low_2[1], self.high_2[1]),
            xlabel=self.labels[0],
            ylabel=self.labels[1],
        )

    def arrows(self, axes: Axes, which: np.ndarray, *values, **style) -> None:
        """The viewing directions of these frames."""
        length = 0.04 * float(np.linalg.norm(self.high_2 - self.low_2))
        # a camera that looks down at 60 degrees has a direction as clear as one that looks ahead;
        # one that looks straight down has none
        level = np.linalg.norm(self.uv_F2[which], axis=1, keepdims=True)
        uv = length * self.uv_F2[which] / np.maximum(level, 0.25)
        axes.quiver(
            *self.xy_F2[which].T,
            *uv.T,
            *values,
            angles="xy",
            scale_units="xy",
            scale=1,
            units="inches",
            width=0.022,
            headwidth=4,
            headlength=4.5,
            headaxislength=4,
            **style,
        )


def _view_of(
    reconstruction: Reconstruction,
    landmarks: Landmarks | None,
    up_3: np.ndarray | None,
    metric: bool,
) -> _View:
    T_F44 = np.array([f.T_world_camera for f in reconstruction.frames], float).reshape(-1, 4, 4)
    up = np.array([0, 0, 1.0]) if up_3 is None else np.asarray(up_3, float)
    if up_3 is None and len(T_F44):
        mean = geometry.mean_up(T_F44)
        up = mean if np.linalg.norm(mean) > 0.5 else up  # as many upside down as upright: no up
    above = html.seen_from_above(up)

    def to_plan(xyz_N3: np.ndarray) -> np.ndarray:
        return np.stack(above(xyz_N3.reshape(-1, 3)), 1)

    xy_F2 = to_plan(T_F44[:, :3, 3])
    near_F = _near(xy_F2)
    clouds = [to_plan(reconstruction.points_N3)]
    if landmarks is not None:
        clouds.append(to_plan(landmarks.xyz_L3))
    low, high = _corners(xy_F2[near_F], clouds)
    unit = html.length_unit(metric)
    level = up_3 is not None and up[2] > 0.999 * np.linalg.norm(up)
    return _View(
        to_plan,
        xy_F2,
        to_plan(T_F44[:, :3, 2]),
        low,
        high,
        int((~near_F).sum()),
        (f"x, {unit}", f"y, {unit}") if level else (unit, unit),
    )


def _near(xy_F2: np.ndarray) -> np.ndarray:
    """Which positions (F,) are not absurdly far from most of the others."""
    if not len(xy_F2):
        return np.zeros(0, bool)
    distance = np.linalg.norm(xy_F2 - np.median(xy_F2, axis=0), axis=1)
    typical = float(np.percentile(distance, 75))
    return distance <= 20 * typical if typical > 0 else np.ones(len(xy_F2), bool)


def _corners(xy_F2: np.ndarray, clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right of a picture that holds all cameras and most of the points."""
    most = [np.percentile(xy, [2, 98], axis=0) for xy in clouds if len(xy)]
    corners = np.concatenate([xy_F2, *most])
    low, high = (corners.min(0), corners.max(0)) if len(corners) else (np.zeros(2), np.zeros(2))
    extent = float((high - low).max()) or 1.0
    # a drive along a line, or a room that is a point, gets a picture with some width and height too
    margin = np.maximum(0.05 * extent, (0.25 * extent - (high - low)) / 2)
    return low - margin, high + margin


def _draw_cloud(axes: Axes, view: _View, points_N3: np.ndarray) -> None:
    """Points, darker where they are many: on a logarithmic scale, or walls of thousands of points
    would leave nothing of the rest."""
    xy = view.to_plan(points_N3)
    xy = xy[(xy >= view.low_2).all(1) & (xy <= view.high_2).all(1)]
    extent = view.high_2 - view.low_2
    cells = np.maximum(np.round(extent / extent.max() * 200).astype(int), 1)
    cell = np.minimum(((xy - view.low_2) / extent * cells).astype(int), cells - 1)
    count = np.bincount(cell @ [1, cells[0]], minlength=cells.prod()).reshape(cells[::-1])
    count = count.astype(np.float32)
    density = np.log1p(cv2.GaussianBlur(count, (0, 0), 1.2))[cell[:, 1], cell[:, 0]]
    drawn = np.array(spread(range(len(xy)), DOTS), int)
    drawn = drawn[np.argsort(density[drawn])]
    size = 7 if len(xy) < 5000 else 4
    axes.scatter(*xy[drawn].T, c=density[drawn], cmap=CLOUD, s=size, lw=0, zorder=1)
    view.frame(axes)


def _draw_sessions(
    axes: Axes, view: _View, frames: Sequence[Frame], lost: Collection[str]
) -> list[Line2D]:
    """Paths, directions and first images; returns what the legend says of them."""
    members: dict[str, list[int]] = {}
    for i, frame in enumerate(frames):
        members.setdefault(frame.session, []).append(i)
    by_size = sorted(members.items(), key=lambda item: -len(item[1]))
    handles, gaps = [], 0
    for rank, (session, which) in enumerate(by_size):
        color = SESSIONS[rank] if rank < len(SESSIONS) else OTHERS
        gaps += _draw_path(axes, view.xy_F2[which], [frames[i].name for i in which], lost, color)
        drawn = spread(which, max(4, ARROWS // len(by_size)))
        view.arrows(axes, drawn, color=color, zorder=4)
        if rank < len(SESSIONS):
            axes.plot(*view.xy_F2[which[0]], "o", color=color, mfc="white", ms=8, mew=2, zorder=5)
            label = f"{html.plain(session, 28) or 'cameras'} ({len(which):,})"
            handles.append(Line2D([], [], color=color, marker="o", ms=4, label=label))
    if len(by_size) > len(SESSIONS):
        label = f"{len(by_size) - len(SESSIONS):,} more sessions"
        handles.append(Line2D([], [], color=OTHERS, marker="o", ms=4, label=label))
    if by_size:
        ring = dict(marker="o", mfc="white", ms=8, mew=2, ls="")
        handles.append(Line2D([], [], color=DARK, label="first image", **ring))
    if gaps:
        label = f"images lost here ({gaps:,} gaps)"
        handles.append(Line2D([], [], color=LOST, ls=":", lw=2.6, label=label))
    return handles


def _draw_path(
    axes: Axes, xy_N2: np.ndarray, names: Sequence[str], lost: Collection[str], color: str
) -> int:
    """One session's cameras, joined where they are a drive; returns how many gaps lost images
    leave."""
    axes.plot(*xy_N2.T, ".", color=color, ms=5, zorder=3)
    if not _is_drive(xy_N2):
        return 0
    missing = sorted(_natural(name) for name in lost)
    before = [bisect.bisect(missing, _natural(name)) for name in names]  # lost images, of each
    is_gap = np.diff(before) > 0
    segments = np.stack([xy_N2[:-1], xy_N2[1:]], 1)
    # a drive that goes on somewhere else is not joined through the walls
    step = np.linalg.norm(np.diff(xy_N2, axis=0), axis=1)
    joined = ~is_gap & (step <= 15 * np.median(step))
    axes.add_collection(
        LineCollection(segments[joined], color=color, lw=1.2, alpha=0.7, zorder=3), autolim=False
    )
    axes.add_collection(
        LineCollection(segments[is_gap], color=LOST, ls=":", lw=2.6, zorder=6), autolim=False
    )
    return int(is_gap.sum())


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts numbers in names by value."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"([0-9]{1,18})", name)
    ]


def _is_drive(xy_N2: np.ndarray) -> bool:
    """Whether neighbours in order are neighbours in space, as in a video: photographs in any order
    are not joined."""
    if len(xy_N2) < 3:
        return len(xy_N2) == 2
    nearest = cKDTree(xy_N2).query(xy_N2, k=2)[0][:, 1]
    step = np.linalg.norm(np.diff(xy_N2, axis=0), axis=1)
    return bool(np.median(step) <= 6 * np.median(nearest) + 1e-9)


def _draw_counts(
    axes: Axes, view: _View, landmarks: Landmarks, count_F: np.ndarray, minimum: int
) -> None:
    few_F = count_F < minimum
    drawn = spread(range(len(count_F)), ARROWS)
    top = max(minimum, float(np.percentile(count_F, 95)) if len(count_F) else 0, 1)
    scale = dict(cmap="viridis", clim=(0, top))
    axes.scatter(*view.to_plan(landmarks.xyz_L3).T, s=4, color="#b9c0c7", lw=0, zorder=1)
    view.arrows(axes, drawn, count_F[drawn], zorder=3, **scale)
    if len(count_F) <= 50:
        dot, ring, line = 30, 90, 0.3
    elif len(count_F) <= 300:
        dot, ring, line = 16, 50, 0.3
    else:
        dot, ring, line = 9, 32, 0.0
    colors = dict(c=count_F, vmin=0, vmax=top, cmap="viridis")
    dots = axes.scatter(*view.xy_F2.T, s=dot, lw=line, edgecolor=DARK, zorder=4, **colors)
    rings = dict(edgecolor=LOST, facecolor="none", lw=0.3 * np.sqrt(dot))
    axes.scatter(*view.xy_F2[few_F].T, s=ring, zorder=5, **rings)
    bar = axes.figure.colorbar(
        dots,
        ax=axes,
        label="landmarks in view",
        shrink=0.85,
        extend="max" if (count_F > top).any() else "neither",
    )
    bar.ax.axhline(minimum, color=LOST, lw=2.5)
    view.frame(axes)


def _draw_histogram(axes: Axes, count_F: np.ndarray, minimum: int) -> None:
    width = max(1, int(np.ceil((max(count_F, default=0) + 1) / 16)))
    # a bin starts at the minimum, so that each bar is either below or not
    edges = np.arange(minimum % width - width, max(count_F, default=0) + width + 1, width)
    bars, _ = np.histogram(count_F, edges)
    below = edges[:-1] < minimum
    for which, style in (
        (~below, {"color": SESSIONS[0]}),
        (below, {"color": LOST, "hatch": "///"}),
    ):
        axes.bar(
            edges[:-1][which],
            bars[which],
            width,
            align="edge",
            edgecolor="white",
            lw=0.5,
            **style,
        )
    axes.axvline(minimum, color=DARK, lw=1, ls=":")
    axes.set(xlabel="landmarks in view", ylabel="viewpoints", xlim=(0, edges[-1]))
    axes.yaxis.get_major_locator().set_params(integer=True)
