"""When images were registered, lost or rejected: one strip per session."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sld_core import html
from sld_core.types import Frame, FrameSet

REGISTERED, LOST, REJECTED = "#0072b2", "#d55e00", "#8b959f"
STRIPS = 16  # sessions in one picture
# a source that tells its time: "lobby.mp4 at 12.25 s", or of a bag with the seconds of its clock
AT = re.compile(r"(.*) at ([0-9]{1,12}(?:\.[0-9]{1,9})?) s", re.DOTALL)


@dataclass(frozen=True)
class _Strip:
    """One session: its frames, where on the axis each is (seconds, or numbers of images), which
    have a pose, and where rejected sources are."""

    session: str
    frames: tuple[Frame, ...]
    x_F: np.ndarray
    registered_F: np.ndarray
    x_rejected_R: np.ndarray

    @property
    def lost(self) -> int:
        return int((~self.registered_F).sum())


def timeline(frame_set: FrameSet, registered: Collection[str]) -> Figure:
    """Images with a pose (bars), images without (longer bars, standing out above) and what was
    rejected before (ticks below).

    x is seconds since the session's first image where all sessions have stamps, else the number of
    the image. Rejected sources have a place where they name a time, as those of videos do; the
    legend counts all."""
    strips, timed = _strips(frame_set, frozenset(registered))
    worst = sorted(range(len(strips)), key=lambda i: -strips[i].lost)[:STRIPS]
    shown = [strips[i] for i in sorted(worst)]
    figure, axes = html.figure_axes(9.4, 1.5 + 0.62 * max(len(shown), 1))
    length = max([float(s.x_F.max()) for s in shown], default=0.0) or 1.0
    for y, strip in enumerate(shown):
        _draw(axes, y, strip, length)
    names = [
        f"{html.plain(s.session, 28) or 'all images'}\n{int(s.registered_F.sum()):,} of "
        f"{len(s.frames):,}"
        for s in shown
    ]
    axes.set_yticks(range(len(shown)), names)
    axes.set(
        xlim=(-0.01 * length, 1.01 * length),
        ylim=(max(len(shown), 1) - 0.4, -0.6),
        xlabel="seconds" if timed else "image",
    )
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _describe(axes, frame_set, strips, len(strips) - len(shown))
    return figure


def _describe(axes: Axes, frame_set: FrameSet, strips: list[_Strip], left_out: int) -> None:
    total, rejected = len(frame_set.frames), len(frame_set.rejected)
    lost = sum(s.lost for s in strips)
    handles = [
        Patch(color=REGISTERED, label=f"{total - lost:,} registered"),
        Patch(color=LOST, label=f"{lost:,} lost"),
    ]
    if rejected:
        placed = sum(len(s.x_rejected_R) for s in strips)
        if placed == rejected:
            where = ""
        elif placed:
            where = f" ({rejected - placed:,} of them at an unknown time)"
        else:
            where = " (not shown: no time known)"
        handles.append(Patch(color=REJECTED, label=f"{rejected:,} rejected before{where}"))
    html.legend(axes, handles)
    found = f"All {total:,} images found their place in the map"
    if lost:
        found = f"{lost:,} of {total:,} images found no place in the map"
    rest = f" ({left_out:,} sessions that lost fewer are not shown)" if left_out else ""
    html.headline(axes.figure, found + rest)


def _strips(frame_set: FrameSet, registered: frozenset[str]) -> tuple[list[_Strip], bool]:
    """The sessions in order, and whether x is time."""
    by_session: dict[str, list[Frame]] = {}
    for frame in frame_set.frames:
        by_session.setdefault(frame.session, []).append(frame)
    # one image alone says nothing; two need different stamps
    timed = all(
        len({f.stamp_ns for f in frames}) > len(frames) // 2
        for frames in by_session.values()
        if len(frames) > 1
    )
    timed = timed and any(f.stamp_ns for f in frame_set.frames)
    rejected = [match.groups() for match in map(AT.fullmatch, frame_set.rejected) if match]
    strips = []
    for session, frames in by_session.items():
        x_F = np.arange(float(len(frames)))
        if timed:
            frames = sorted(frames, key=lambda f: f.stamp_ns)
            x_F = np.array([(f.stamp_ns - frames[0].stamp_ns) / 1e9 for f in frames])
        registered_F = np.array([f.name in registered for f in frames], bool)
        x_rejected = _times(frames, x_F, rejected)
        strips.append(_Strip(session, tuple(frames), x_F, registered_F, x_rejected))
    return strips, timed


def _times(frames: list[Frame], x_F: np.ndarray, rejected: list[tuple[str, str]]) -> np.ndarray:
    """Where on the axis those rejected sources are that come from the same place (a video) as
    frames of this session."""
    known = []
    for frame, x in zip(frames, x_F):
        if match := AT.fullmatch(frame.source):
            known.append((match[1], float(match[2]), x))
    out = []
    for place, seconds in rejected:
        same = np.array([(t, x) for p, t, x in known if p == place]).reshape(-1, 2)
        if len(same):
            t, x = same[np.argsort(same[:, 0], kind="stable")].T
            out.append(float(np.interp(float(seconds), t, x)))
    return np.array(out)


def _draw(axes: Axes, y: int, strip: _Strip, length: float) -> None:
    step = float(np.median(np.diff(strip.x_F))) if len(strip.x_F) > 1 else length
    # as wide as the time between two images (the axis is about 560 points long), but never too thin
    # to be seen
    width = float(np.clip(560 * step / length, 0.7, 9))
    # images too close to be told apart make one bar, without the stripes of a fence
    bar = width * (0.75 if width > 4 else 1.2)
    axes.hlines(y, 0, float(strip.x_F[-1]), color="#dfe3e6", lw=1, zorder=1)
    registered, lost = strip.x_F[strip.registered_F], strip.x_F[~strip.registered_F]
    _bars(axes, registered, y - 0.2, y + 0.2, REGISTERED, bar, 2)
    _bars(axes, lost, y - 0.42, y + 0.2, LOST, max(bar, 1.4), 3)
    _bars(axes, strip.x_rejected_R, y + 0.26, y + 0.42, REJECTED, max(0.5 * width, 1), 2)


def _bars(
    axes: Axes, x: np.ndarray, low: float, high: float, color: str, width: float, zorder: int
) -> None:
    axes.vlines(x, low, high, color=color, lw=width, zorder=zorder, capstyle="butt")
