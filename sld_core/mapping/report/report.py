"""A self-contained HTML page about a map: its numbers, what was lost, and the pictures that show
whether to trust it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sld_core import html
from sld_core.camera.images import read_depth, read_image
from sld_core.data.frame_selection import count_reasons
from sld_core.mapping.report import close_ups, plan_view
from sld_core.mapping.report.timeline import timeline
from sld_core.spread import spread
from sld_core.types import FrameSet, Landmarks, Reconstruction, SldError, Visibility

DEPTH_PAIRS = 2
DEPTHS_TRIED = 50
# what rows of the table are called; other keys of `summary` keep their own names
NAMES = {
    "components": "separate pieces",
    "reprojection_px": "reprojection error, pixels",
    "metric": "metres",
    "scale_source": "scale from",
    "source": "scale from",
    "upright": "upright from",
    "residual": "residual",
}
SHOWN_ELSEWHERE = ("images", "registered", "lost", "seconds", "notes", "rejected")


@dataclass(frozen=True)
class MapReport:
    """What the page is made of.

    `summary` is what `sld map --json` writes; `lost` are names of images without a pose, with
    reasons; `visibility_FL` and `split_F` are per frame of `reconstruction`; `depth_folder` holds
    <name>.depth.png in 1/1000 world unit; `seconds` per stage; `minimum` landmarks should be in
    view from everywhere. What is None is left out."""

    title: str
    summary: Mapping[str, Any]
    frame_set: FrameSet
    reconstruction: Reconstruction
    lost: Mapping[str, str]
    landmarks: Landmarks | None = None
    visibility_FL: np.ndarray | None = None
    split_F: Sequence[str] | None = None
    depth_folder: Path | None = None
    seconds: Mapping[str, float] | None = None
    notes: Sequence[str] = ()
    minimum: int = 20

    @property
    def metric(self) -> bool:
        return bool(self.summary.get("metric"))

    @property
    def up_3(self) -> np.ndarray | None:
        """z where the world is known to be upright, else None."""
        upright = self.summary.get("upright", "none") not in ("none", None, False)
        return np.array([0, 0, 1.0]) if upright or self.frame_set.world_z_up else None

    @property
    def count_F(self) -> np.ndarray | None:
        """How many landmarks each frame shows."""
        if self.visibility_FL is None:
            return None
        return (self.visibility_FL == Visibility.VISIBLE).sum(1)

    @property
    def images(self) -> int:
        return len(self.reconstruction.frames) + len(self.lost)


def write_map_report(path: Path, report: MapReport) -> None:
    """Writes one HTML file with all pictures inside. A picture that cannot be drawn is replaced by
    the reason."""
    count_F = report.count_F
    sections = [html.paragraph(_verdict(report)), html.table(_rows(report, count_F))]
    sections += [html.paragraph(note) for note in report.notes]
    sections += _what_was_lost(report)
    sections.append(_plan(report))
    if count_F is not None:
        sections += _coverage(report, count_F)
    if report.depth_folder is not None:
        sections += _depths(report, report.depth_folder)
    sections.append(_track(report))
    if report.seconds:
        caption = f"Where the {sum(report.seconds.values()):,.0f} s of mapping went."
        sections.append(html.figure(html.stage_times(report.seconds), caption))
    html.write_page(path, report.title, sections)


def _verdict(report: MapReport) -> str:
    frames = len(report.reconstruction.frames)
    scale = "It is in metres."
    if not report.metric:
        scale = (
            "It has no scale: its units are not metres, and a robot cannot use positions in it. "
            "Odometry, depth images, tags of known size or one measured distance give it one."
        )
    return (
        f"{frames:,} of {report.images:,} images ({_percent(frames, report.images)}) have a place "
        f"in the map. {scale}"
    )


def _rows(report: MapReport, count_F: np.ndarray | None) -> list[tuple[str, str]]:
    """The table: what every map has, then whatever else the summary says."""
    r, frames = report.reconstruction, len(report.reconstruction.frames)
    sessions = len({f.session for f in report.frame_set.frames})
    rows = [
        ("images", f"{report.images:,}"),
        ("with a pose", f"{frames:,} ({_percent(frames, report.images)})"),
        ("lost", _counted(report.lost)),
        ("rejected before", _counted(report.frame_set.rejected)),
        ("sessions", f"{sessions:,}"),
        ("points", f"{len(r.points_N3):,}"),
    ]
    if len(r.points_N3) and frames:
        views = len(r.obs_point_M) / len(r.points_N3)
        rows.append(("images that see a point, on average", f"{views:.1f}"))
    summary = dict(report.summary)
    if len(r.error_px_N):
        summary = {"reprojection_px": float(r.error_px_N.mean())} | summary
    rows += [
        (NAMES.get(key, key.replace("_", " ")), _text(value))
        for key, value in summary.items()
        if key not in SHOWN_ELSEWHERE
    ]
    if report.split_F is not None and len(report.split_F):
        parts = Counter(report.split_F).items()
        rows.append(("split", ", ".join(f"{n:,} {name}" for name, n in parts)))
    if report.landmarks is not None:
        rows.append(("landmarks", f"{len(report.landmarks):,}"))
    if count_F is not None and len(count_F):
        text = f"{np.median(count_F):.0f} (median), {count_F.min():,} to {count_F.max():,}"
        rows.append(("landmarks in view of an image", text))
    if report.seconds:
        total = float(sum(report.seconds.values()))
        rows.append(("seconds", _text({**report.seconds, "in all": total})))
    return rows


def _counted(reasons: Mapping[str, str]) -> str:
    most = list(count_reasons(dict(reasons)).items())[:6]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in most)
    return f"{len(reasons):,} ({_text(kinds)})" if kinds else f"{len(reasons):,}"


def _text(value: Any) -> str:
    """A value of the summary in words; long ones are cut."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {_text(v)}" for key, v in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(_text(v) for v in value)
    elif isinstance(value, (bool, np.bool_)):
        text = "yes" if value else "no"
    elif isinstance(value, (float, np.floating)):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    else:
        text = "–" if value is None or value == "" else str(value)
    return text if len(text) <= 400 else text[:400] + "…"


def _percent(part: int, whole: int) -> str:
    """Never 100 % where something is missing."""
    share = 100 * part / max(whole, 1)
    return f"{share:.0f} %" if part == whole else f"{min(share, 99.9):.1f} %"


def _what_was_lost(report: MapReport) -> list[str]:
    sections = []
    if report.frame_set.frames:
        names = {f.name for f in report.reconstruction.frames} - set(report.lost)
        caption = (
            "The images of each session in order. Single orange bars are images that were blurred "
            "or empty; a block of them is a part of the place that the map lacks: drive there "
            "again, slowly, coming from a part that it knows."
        )
        sections.append(_figure(lambda: timeline(report.frame_set, names), caption))
    for what, reasons in (
        ("Images without a pose", report.lost),
        ("Rejected before mapping", report.frame_set.rejected),
    ):
        if reasons:
            lines = [f"{name}: {reason}" for name, reason in reasons.items()]
            sections.append(html.folded(f"{what}: {len(reasons):,}", lines))
    return sections


def _plan(report: MapReport) -> str:
    caption = (
        "The map from above: points (grey, darker where there are many), landmarks (black), the "
        "path of every session and where its images look. Walls should be straight and single: a "
        "wall seen twice means that a loop did not close."
    )

    def draw() -> Figure:
        return plan_view.plan(
            report.reconstruction,
            report.lost,
            report.landmarks,
            up_3=report.up_3,
            metric=report.metric,
        )

    return _figure(draw, caption)


def _coverage(report: MapReport, count_F: np.ndarray) -> list[str]:
    minimum, frames = report.minimum, report.reconstruction.frames
    caption = (
        f"How many landmarks each viewpoint sees. Where it is fewer than {minimum} (ringed), a "
        "robot will hardly be localized: more landmarks, or more images from there, help."
    )

    def draw() -> Figure:
        return plan_view.coverage(
            report.reconstruction,
            report.landmarks,
            count_F,
            minimum,
            up_3=report.up_3,
            metric=report.metric,
        )

    sections = [_figure(draw, caption)]
    few = [i for i in np.argsort(count_F, kind="stable") if count_F[i] < minimum]
    if few:
        title = f"Viewpoints with fewer than {minimum} landmarks: {len(few):,}"
        sections.append(html.folded(title, [f"{frames[i].name}: {count_F[i]:,}" for i in few]))
    return sections


def _depths(report: MapReport, folder: Path) -> list[str]:
    """Depth before and after, of images spread over those that have it."""
    frames = report.reconstruction.frames
    tried = spread(range(len(frames)), DEPTHS_TRIED)
    having = [i for i in tried if _depth_path(folder, frames[i].name) is not None]
    if not having:
        return [html.paragraph(f"No depth images were found in {folder}.")]
    count = min(DEPTH_PAIRS, len(having))
    return [
        _depth_pair(report, having[len(having) * (2 * k + 1) // (2 * count)], folder)
        for k in range(count)
    ]


def _depth_pair(report: MapReport, i: int, folder: Path) -> str:
    r, name, metric = report.reconstruction, report.reconstruction.frames[i].name, report.metric
    # the sensor's depth is in metres, and was not used where the map is not
    sensors = [f.depth_path for f in report.frame_set.frames if f.name == name and metric]
    sensor = next((path for path in sensors if path is not None), None)

    def draw() -> Figure:
        before = close_ups.sparse_depth(r, i) if sensor is None else read_depth(sensor)
        after = read_depth(_depth_path(folder, name))
        return close_ups.depth_pair(
            read_image(r.frames[i].image_path), before, after, metric=metric
        )

    source = "of its tracked points" if sensor is None else "as the sensor gave it"
    caption = (
        f"Depth of {name}: {source}, and as it was completed. Edges of the depth should lie on "
        "edges of the image, and known depths should not change."
    )
    return _figure(draw, caption, photo=True)


def _depth_path(folder: Path, name: str) -> Path | None:
    """The depth image of a frame, where there is one."""
    path = folder / f"{name}.depth.png"
    return path if path.is_file() else None


def _track(report: MapReport) -> str:
    caption = (
        "One landmark in the most different images that show it, with the same patch of the world "
        "enlarged. All rings should lie on the same thing; if not, the map mixes things that look "
        "alike."
    )

    def draw() -> Figure:
        point = close_ups.best_track(report.reconstruction, report.landmarks)
        return close_ups.landmark_track(report.reconstruction, point, metric=report.metric)

    return _figure(draw, caption, photo=True)


def _figure(draw: Callable[[], Figure], caption: str, photo: bool = False) -> str:
    """The picture, or why there is none: the report is written after hours of mapping, and an image
    deleted since must not cost it."""
    try:
        picture = draw()
        return html.figure(html.pixels(picture) if photo else picture, caption)
    except SldError as error:
        return html.paragraph(f"There is no picture here: {error}")
