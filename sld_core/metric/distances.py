"""Scale from distances that the user measured: between camera positions, or between points clicked
in images."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

import numpy as np

from sld_core.config.mapping import MetricConfig
from sld_core.metric.scale import Scale, depths_in, log_median, median_depth
from sld_core.types import FrameSet, Reconstruction, SldError

HOW = (
    'expected "NAME NAME METRES" for the distance between the camera positions of two images, or '
    '"NAME:x,y NAME:x,y METRES" between two points by their pixels; several are separated by ";"'
)
MAX_SPREAD = 0.25  # median deviation of the scales that several distances give, relative
CLICK = re.compile(r"(?P<name>.+):(?P<x>\d+(\.\d+)?),(?P<y>\d+(\.\d+)?)")


@dataclass(frozen=True)
class End:
    """One end of a measured distance: the camera of a frame or, with `xy` (pixel centres at
    integers, as image viewers count), the point of the scene that the frame shows there."""

    name: str
    xy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Distance:
    a: End
    b: End
    metres: float


def parse_distance(text: str) -> list[Distance]:
    """The measured distances in `text`, such as "image-000000 image-000041 3.20; lobby.jpg:312,200
    lobby.jpg:400,210 = 1.85".

    A name is an id (image-000003) or a source file's name; names with spaces stand in quotes."""
    return [_parse_one(part.strip()) for part in text.split(";") if part.strip()]


def _parse_one(text: str) -> Distance:
    try:
        words = shlex.split(re.sub(r"\s*=\s*(?=[\d.]+\s*m?$)", " ", text))
    except ValueError as error:
        raise SldError(f"distance {text!r}: {error}; {HOW}") from None
    if len(words) == 4 and words[3] == "m":
        words = words[:3]
    if len(words) != 3:
        raise SldError(f"distance {text!r}: {len(words)} words; {HOW}")
    a, b, number = words
    return Distance(_parse_end(a), _parse_end(b), _parse_metres(text, number))


def _parse_metres(text: str, number: str) -> float:
    try:
        metres = float(number.removesuffix("m"))
    except ValueError:
        raise SldError(
            f"distance {text!r}: {number!r} is no number of metres, such as 1.85; {HOW}"
        ) from None
    if not (math.isfinite(metres) and 1e-3 <= metres <= 1e5):
        raise SldError(f"distance {text!r}: {number} metres; expected 0.001 to 100000")
    return metres


def _parse_end(word: str) -> End:
    match = CLICK.fullmatch(word)
    return End(match["name"], (float(match["x"]), float(match["y"]))) if match else End(word)


def distance_scale(
    reconstruction: Reconstruction, frame_set: FrameSet, config: MetricConfig
) -> Scale:
    """From the distances of `config.distance`: the median of what each says.

    A name that no frame has raises SldError; a frame that was not registered, or a click far from
    any point, is the reason of a Scale without one."""
    measured = parse_distance(config.distance)
    if not measured:
        reason = 'no distance is given (metric.distance="NAME NAME METRES")'
        return Scale("distance", None, reason, absent=True)
    # a name that is unknown is an error even after an end that cannot be used
    names = {end.name: _frame_id(end.name, frame_set) for d in measured for end in (d.a, d.b)}
    logs = []
    for distance in measured:
        result = _log_scale(reconstruction, distance, names, config)
        if isinstance(result, str):
            return Scale("distance", None, result)
        logs.append(result)
    scale, _ = log_median(np.array(logs))
    off = np.abs(np.array(logs) - math.log(scale))
    spread = 100 * float(off.max())
    if np.median(off) > MAX_SPREAD:
        reason = (
            f"the measured distances contradict each other: they differ by up to {spread:.0f} % "
            "from their median; measure again, and check that the names are those of the images "
            "meant"
        )
        return Scale("distance", None, reason)
    notes = []
    if spread > 100 * config.max_disagreement:
        notes.append(f"the measured distances differ by up to {spread:.1f} % from their median")
    residual = {"distance_count": float(len(logs)), "distance_spread_percent": spread}
    return Scale("distance", scale, residual=residual, notes=notes)


def _log_scale(
    reconstruction: Reconstruction, distance: Distance, names: dict[str, str], config: MetricConfig
) -> float | str:
    """log(metres / units) of one distance, or why it cannot be used. `names`: as given -> id."""
    frames = reconstruction.frames
    index = {f.name: i for i, f in enumerate(frames)}
    ends = []
    for end in (distance.a, distance.b):
        name = names[end.name]
        if name not in index:
            return (
                f"{name} was not registered; measure between images that were, such as "
                f"{frames[0].name} and {frames[-1].name}"
            )
        position = _position(reconstruction, index[name], end, config)
        if isinstance(position, str):
            return position
        ends.append(position)
    units = float(np.linalg.norm(ends[0] - ends[1]))
    if units < 0.01 * median_depth(reconstruction):
        return (
            f"the two ends of {distance.a.name} - {distance.b.name} ({distance.metres:g} m) lie at "
            "the same place in the reconstruction; measure between places further apart"
        )
    return math.log(distance.metres / units)


def _frame_id(name: str, frame_set: FrameSet) -> str:
    """The id of the frame of this id, source, or source file name."""
    for matches in (
        [f.name for f in frame_set.frames if f.name == name],
        [f.name for f in frame_set.frames if f.source == name],
        [f.name for f in frame_set.frames if f.source.rpartition("/")[2] == name],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise SldError(
                f"distance: {len(matches)} images come from {name!r}, the first are "
                f"{matches[0]} and {matches[1]}; give the id"
            )
    first = frame_set.frames[0]
    example = f" such as {first.source.rpartition('/')[2]}" if first.source else ""
    raise SldError(
        f"distance: no image is called {name!r}; expected an id such as {first.name} or the name "
        f"of a source file{example}"
    )


def _position(
    reconstruction: Reconstruction, frame: int, end: End, config: MetricConfig
) -> np.ndarray | str:
    """Where an end lies (3,), in units of the reconstruction, or why that is not known."""
    f = reconstruction.frames[frame]
    if end.xy is None:
        return f.T_world_camera[:3, 3]
    xy = np.array(end.xy) + 0.5
    where = f"{f.name}:{end.xy[0]:g},{end.xy[1]:g}"
    if not ((xy < [f.camera.width, f.camera.height]) & (xy >= 0)).all():
        raise SldError(
            f"distance: {where} lies outside of the image of "
            f"{f.camera.width}x{f.camera.height} pixels"
        )
    of_frame = np.flatnonzero(reconstruction.obs_frame_M == frame)
    away = np.linalg.norm(reconstruction.obs_xy_M2[of_frame] - xy, axis=1)
    order = np.argsort(away, kind="stable")[:5]
    near = order[away[order] <= config.pick_radius_px]
    if not len(near):
        nearest = f"the nearest is {away.min():.0f} px away" if len(away) else "it has none"
        return (
            f"{where}: no point is known within {config.pick_radius_px:g} px "
            f"(metric.pick_radius_px), {nearest}; click on a corner of something with texture"
        )
    z = depths_in(reconstruction, frame, reconstruction.obs_point_M[of_frame[near]])
    # neighbours on the same surface make the depth more precise; others are of no use
    same = np.abs(z - z[0]) <= 0.1 * abs(z[0])
    depth = 1 / np.average(1 / z[same], weights=1 / (1 + away[order][: len(z)][same] ** 2))
    ray = np.array([(xy[0] - f.camera.cx) / f.camera.fx, (xy[1] - f.camera.cy) / f.camera.fy, 1.0])
    return f.T_world_camera[:3, :3] @ (depth * ray) + f.T_world_camera[:3, 3]
