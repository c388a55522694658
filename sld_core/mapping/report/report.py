"""A self-contained HTML page about a map: its numbers, what was lost, and the pictures that tell
whether to trust it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sld_core import html
from sld_core.camera.images import read_depth, read_image
from sld_core.data.frame_selection import count_reasons
from sld_core.mapping.report import close_ups, plan_view
from sld_core.spread import spread
from sld_core.types import FrameSet, Landmarks, Reconstruction, SldError

MINIMUM = 20  # landmarks that a viewpoint should see
DEPTH_PAIRS = 2
# what rows of the table are called; those of `summary` that are not named here keep their own names
NAMES = {
    "components": "separate pieces",
    "reprojection_px": "reprojection error, pixels",
    "metric": "metres",
    "scale_source": "scale from",
    "source": "scale from",
    "upright": "upright from",
    "residual": "residual",
}
TOLD_ELSEWHERE = ("images", "registered", "lost", "seconds", "notes", "rejected")


def write_map_report(
    path: Path,
    title: str,
    summary: Mapping[str, Any],
    frame_set: FrameSet,
    reconstruction: Reconstruction,
    lost: Mapping[str, str],
    landmarks: Landmarks | None,
    visibility_FL: np.ndarray | None,
    split_F: Sequence[str] | None,
    depth_folder: Path | None,
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
    *,
    minimum: int = MINIMUM,
) -> None:
    """Writes one HTML file with all pictures inside.

    `summary` is what `sld map --json` says; `lost` are names of images without a pose, with
    reasons; `visibility_FL` and `split_F` are per frame of `reconstruction`; `depth_folder` holds
    <name>.depth.png in 1/1000 world unit; `seconds` per stage. What is None is left out; a picture
    that cannot be drawn is replaced by the reason."""
    metric, up_3 = bool(summary.get("metric")), _up(summary, frame_set)
    count_F = None
    if landmarks is not None and visibility_FL is not None:
        count_F = plan_view.visible_landmarks(reconstruction, landmarks, visibility_FL)
    sections = [html.paragraph(_verdict(summary, reconstruction, lost, metric))]
    sections.append(
        html.table(
            _rows(summary, frame_set, reconstruction, lost, landmarks, count_F, split_F, seconds)
        )
    )
    sections += [html.paragraph(note) for note in notes]
    sections += _what_was_lost(frame_set, reconstruction, lost)
    sections.append(_plan(reconstruction, lost, landmarks, up_3, metric))
    if count_F is not None:
        sections += _coverage(
            reconstruction, landmarks, visibility_FL, count_F, minimum, up_3, metric
        )
    sections += _depths(frame_set, reconstruction, depth_folder, metric)
    sections.append(_track(reconstruction, landmarks, metric))
    if seconds:
        sections.append(
            html.figure(
                html.stage_times(seconds),
                f"Where the {sum(seconds.values()):,.0f} s of mapping went.",
            )
        )
    html.write_page(path, title, sections)


def _up(summary: Mapping[str, Any], frame_set: FrameSet) -> np.ndarray | None:
    """z where the world is known to be upright, else None."""
    known = summary.get("upright", "none") not in ("none", None, False) or frame_set.world_z_up
    return np.array([0, 0, 1.0]) if known else None


def _verdict(
    summary: Mapping[str, Any],
    reconstruction: Reconstruction,
    lost: Mapping[str, str],
    metric: bool,
) -> str:
    frames, total = len(reconstruction.frames), len(reconstruction.frames) + len(lost)
    scale = (
        "It is in metres."
        if metric
        else (
            "It has no scale: its units are not metres, and a robot cannot use positions in it. "
            "Odometry, depth images, tags of known size or one measured distance give it one."
        )
    )
    return (
        f"{frames:,} of {total:,} images ({_percent(frames, total)}) have a place in the "
        f"map. {scale}"
    )


def _rows(
    summary, frame_set, reconstruction, lost, landmarks, count_F, split_F, seconds
) -> list[tuple[str, str]]:
    """The table: what every map has, then whatever else the summary tells."""
    r = reconstruction
    total = len(r.frames) + len(lost)
    sessions = len({f.session for f in frame_set.frames})
    rows = [
        ("images", f"{total:,}"),
        ("with a pose", f"{len(r.frames):,} ({_percent(len(r.frames), total)})"),
        ("lost", _counted(lost)),
        ("rejected before", _counted(frame_set.rejected)),
        ("sessions", f"{sessions:,}"),
        ("points", f"{len(r.points_N3):,}"),
    ]
    if len(r.points_N3) and r.frames:
        rows.append(
            ("images that see a point, on average", f"{len(r.obs_point_M) / len(r.points_N3):.1f}")
        )
    error = r.error_px_N[np.isfinite(r.error_px_N)]
    summary = ({"reprojection_px": float(error.mean())} if len(error) else {}) | dict(summary)
    rows += [
        (NAMES.get(key, key.replace("_", " ")), _text(value))
        for key, value in summary.items()
        if key not in TOLD_ELSEWHERE
    ]
    if split_F is not None and len(split_F):
        rows.append(("split", ", ".join(f"{n:,} {name}" for name, n in Counter(split_F).items())))
    if landmarks is not None:
        rows.append(("landmarks", f"{len(landmarks):,}"))
    if count_F is not None and len(count_F):
        rows.append(
            (
                "landmarks in view of an image",
                f"{np.median(count_F):.0f} (median), {count_F.min():,} to {count_F.max():,}",
            )
        )
    if seconds:
        rows.append(("seconds", _text({**seconds, "in all": float(sum(seconds.values()))})))
    return rows


def _counted(reasons: Mapping[str, str]) -> str:
    kinds = ", ".join(
        f"{count:,} {kind}" for kind, count in list(count_reasons(dict(reasons)).items())[:6]
    )
    return f"{len(reasons):,}" + (f" ({_text(kinds)})" if kinds else "")


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


def _what_was_lost(
    frame_set: FrameSet, reconstruction: Reconstruction, lost: Mapping[str, str]
) -> list[str]:
    sections = []
    if len(frame_set.frames):
        names = {f.name for f in reconstruction.frames} - set(lost)
        sections.append(
            _figure(
                lambda: plan_view.timeline(frame_set, names),
                "The images of each session in order. Single orange bars are "
                "images that were blurred or empty; a block of them is a part of the place "
                "that the map lacks: drive there "
                "again, slowly, coming from a part that it knows.",
            )
        )
    for what, reasons in (
        ("Images without a pose", lost),
        ("Rejected before mapping", frame_set.rejected),
    ):
        if reasons:
            sections.append(
                html.folded(
                    f"{what}: {len(reasons):,}",
                    [f"{name}: {reason}" for name, reason in reasons.items()],
                )
            )
    return sections


def _plan(
    reconstruction: Reconstruction,
    lost: Mapping[str, str],
    landmarks: Landmarks | None,
    up_3: np.ndarray | None,
    metric: bool,
) -> str:
    caption = (
        "The map from above: points (grey, darker where there are many), landmarks (black), "
        "the path of every session and where its "
        "images look. Walls should be straight and single: a wall seen twice means that a loop "
        "did not close."
    )
    return _figure(
        lambda: plan_view.plan(reconstruction, lost, landmarks, up_3=up_3, metric=metric), caption
    )


def _coverage(
    reconstruction, landmarks, visibility_FL, count_F, minimum: int, up_3, metric: bool
) -> list[str]:
    few = [
        f"{reconstruction.frames[i].name}: {count_F[i]:,}"
        for i in np.argsort(count_F, kind="stable")
        if count_F[i] < minimum
    ]
    caption = (
        f"How many landmarks each viewpoint sees. Where it is fewer than {minimum} (ringed), a "
        "robot will hardly be localized: more "
        "landmarks, or more images from there, help."
    )
    draw = lambda: plan_view.coverage(
        reconstruction, landmarks, visibility_FL, minimum, up_3=up_3, metric=metric
    )
    return [_figure(draw, caption)] + (
        [html.folded(f"Viewpoints with fewer than {minimum} landmarks: {len(few):,}", few)]
        if few
        else []
    )


def _depths(
    frame_set: FrameSet, reconstruction: Reconstruction, folder: Path | None, metric: bool
) -> list[str]:
    """Depth before and after, of images spread over those that have it."""
    if folder is None:
        return []
    frames = reconstruction.frames
    having = [
        i for i in spread(range(len(frames)), 50) if _depth_path(folder, frames[i].name) is not None
    ]
    chosen = [
        having[int((k + 0.5) * len(having) / DEPTH_PAIRS)]
        for k in range(min(DEPTH_PAIRS, len(having)))
    ]
    sensor = {f.name: f.depth_path for f in frame_set.frames if f.depth_path is not None and metric}
    out = []
    for i in chosen:
        name = frames[i].name
        source = "as the sensor gave it" if name in sensor else "of its tracked points"
        caption = (
            f"Depth of {name}: {source}, and as it was completed. Edges of the depth should "
            "lie on edges of the image, and known "
            "depths should not change."
        )
        out.append(
            _figure(
                lambda: _depth_pair(reconstruction, i, sensor.get(name), folder, metric),
                caption,
                photo=True,
            )
        )
    return out or [html.paragraph(f"No depth images were found in {folder}.")]


def _depth_pair(
    reconstruction: Reconstruction, i: int, sensor: Path | None, folder: Path, metric: bool
) -> Figure:
    frame = reconstruction.frames[i]
    before = read_depth(sensor) if sensor is not None else close_ups.sparse_depth(reconstruction, i)
    return close_ups.depth_pair(
        read_image(frame.image_path),
        before,
        read_depth(_depth_path(folder, frame.name)),
        metric=metric,
    )


def _depth_path(folder: Path, name: str) -> Path | None:
    """The depth image of a frame, where there is one, inside the folder."""
    path = Path(folder) / f"{name}.depth.png"
    return (
        path if path.is_file() and path.resolve().is_relative_to(Path(folder).resolve()) else None
    )


def _track(reconstruction: Reconstruction, landmarks: Landmarks | None, metric: bool) -> str:
    caption = (
        "One landmark in the most different images that show it, with the same patch of the "
        "world enlarged. All rings should lie on "
        "the same thing; if not, the map mixes things that look alike."
    )
    draw = lambda: close_ups.landmark_track(
        reconstruction, close_ups.best_track(reconstruction, landmarks), metric=metric
    )
    return _figure(draw, caption, photo=True)


def _figure(draw: Callable[[], Figure], caption: str, photo: bool = False) -> str:
    """The picture, or why there is none: the report is written after hours of mapping, and an image
    deleted since must not cost it."""
    try:
        picture = draw()
        return html.figure(html.pixels(picture) if photo else picture, caption)
    except SldError as error:
        return html.paragraph(f"There is no picture here: {error}")
