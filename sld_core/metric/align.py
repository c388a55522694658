"""Reconstruction -> metric and upright: a similarity from odometry, depth images, tags or measured
distances, and gravity."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from sld_core import geometry
from sld_core.config.mapping import MetricConfig
from sld_core.metric.distances import distance_scale, parse_distance
from sld_core.metric.gravity import angle_deg, find_up, upright_rotation
from sld_core.metric.odometry import PoseFit, fit_poses, misfit_of, odometry_scale, residual_of
from sld_core.metric.scale import Scale, depth_scale, median_depth
from sld_core.metric.tags import tag_scale
from sld_core.types import FrameSet, Progress, Reconstruction, SldError

log = logging.getLogger(__name__)

SOURCES = ("odometry", "depth", "tags", "distance")  # in the order in which "auto" takes them
# median depth of a scene without scale: its depth images in 1/1000 unit are then well quantised
UNSCALED_DEPTH = 3.0
MAX_TILT_TO_TF_DEG = 5.0  # of floors and walls in the frame of the given poses, without a note


@dataclass(frozen=True)
class Alignment:
    """x_world = scale * R @ x_sfm + t; in metres by `source` where `metric` (else "none").

    `upright`: what makes z point up: "tf" (the frame of the given poses), "planes", "views", or
    "none" (given poses whose frame is not known to have z up). `residual` holds what every source
    that was available left unexplained."""

    scale: float
    R: np.ndarray
    t: np.ndarray
    metric: bool
    source: str
    upright: str
    residual: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"R": self.R.tolist(), "t": self.t.tolist()}


def align(
    reconstruction: Reconstruction,
    frame_set: FrameSet,
    config: MetricConfig,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Alignment:
    """The similarity that makes a reconstruction metric and upright.

    Scale: by `config.source`; "auto" takes the first usable of odometry (or TF, or poses of the
    user), depth images, tags (where `tag_size_m` is given) and measured distances (where `distance`
    is given). All available ones are measured: the residual has the scale of each relative to the
    chosen one, and a note says where they differ by more than `max_disagreement`. So a tag size or
    distance given beside odometry checks the odometry and does not replace it, as a robot navigates
    in the frame and the metres of its odometry; `source` "distance" trusts the tape measure more,
    in the frame of the odometry still. A source asked for by name, or a tag size or distance given
    where nothing else gives a scale, raises SldError when it cannot be used. Without any scale the
    scene is not metric, and sized so that the median depth is 3 units.

    Frame: of the given poses (the robot's odom or map frame) wherever they fit the images; else
    origin at the first camera, z up by planes or views, x along the first view. A scene that is not
    metric takes only the up direction from given poses."""
    _check(reconstruction)
    reconstruction = _with_depth_paths(reconstruction, frame_set)
    T_sfm, T_given = _posed_pairs(reconstruction, frame_set)
    scales = {"odometry": _odometry(T_sfm, T_given, config)}
    scales |= _other_scales(reconstruction, frame_set, config, progress)
    chosen = _choose(scales, config)
    residual, notes = _summary(scales, chosen, config)
    progress(Progress("finding up", 0.9))
    if chosen is None:
        scale, fixed = UNSCALED_DEPTH / median_depth(reconstruction), None
    else:
        scale = chosen.metres_per_unit
        fixed = None if chosen.source == "odometry" else scale
    fit, reason = _frame_fit(T_sfm, T_given, fixed, config)
    if reason:
        notes.append(f"the frame of the given poses is not used: {reason}")
    frame = _frame(reconstruction, frame_set, fit, scale, chosen is not None, config)
    notes += frame.notes
    if chosen is None:
        notes.append(
            "nothing gives the scale: this scene is not metric (its unit is "
            f"1/{UNSCALED_DEPTH:g} of the median depth)"
        )
    progress(Progress("metric and upright", 1.0))
    out = Alignment(
        float(scale),
        frame.R,
        frame.t,
        metric=chosen is not None,
        source=chosen.source if chosen else "none",
        upright=frame.upright,
        residual=residual | frame.residual,
        notes=notes,
    )
    log.info("scale %.5g from %s, up from %s", out.scale, out.source, out.upright)
    return out


def moved(reconstruction: Reconstruction, alignment: Alignment) -> Reconstruction:
    """The reconstruction with points and camera poses in the frame and unit of `alignment`."""
    scale, R, t = alignment.scale, alignment.R, alignment.t
    frames = []
    for f in reconstruction.frames:
        position = scale * f.T_world_camera[:3, 3] @ R.T + t
        T = geometry.make_transform(R @ f.T_world_camera[:3, :3], position)
        frames.append(replace(f, T_world_camera=T))
    points_N3 = scale * reconstruction.points_N3 @ R.T + t
    return replace(reconstruction, frames=tuple(frames), points_N3=points_N3)


def _check(reconstruction: Reconstruction) -> None:
    frames, points = reconstruction.frames, reconstruction.points_N3
    if len(frames) < 2 or len(points) < 3 or not len(reconstruction.obs_point_M):
        raise SldError(
            f"{len(frames)} registered images and {len(points)} points: too few for a scene; "
            "see the report of SfM"
        )
    if not median_depth(reconstruction) > 0:
        raise SldError(
            "most points of the reconstruction lie behind the cameras that see them; are the "
            "poses camera to world?"
        )


def _with_depth_paths(reconstruction: Reconstruction, frame_set: FrameSet) -> Reconstruction:
    given = {f.name: f.depth_path for f in frame_set.frames}
    frames = tuple(
        replace(f, depth_path=f.depth_path or given[f.name]) for f in reconstruction.frames
    )
    return replace(reconstruction, frames=frames)


def _posed_pairs(
    reconstruction: Reconstruction, frame_set: FrameSet
) -> tuple[np.ndarray, np.ndarray]:
    """Poses (N, 4, 4) in the reconstruction and as given, of the frames that have both."""
    given = {f.name: f.T_world_camera for f in frame_set.frames if f.T_world_camera is not None}
    posed = [f for f in reconstruction.frames if f.name in given]
    T_sfm = np.array([f.T_world_camera for f in posed]).reshape(-1, 4, 4)
    T_given = np.array([given[f.name] for f in posed]).reshape(-1, 4, 4)
    return T_sfm, T_given


def _other_scales(
    reconstruction: Reconstruction,
    frame_set: FrameSet,
    config: MetricConfig,
    progress: Callable[[Progress], None],
) -> dict[str, Scale]:
    """The scales of all sources but odometry; none where no scale is wanted."""
    parse_distance(config.distance)  # reports a mistake even where the distance is not needed
    if config.source == "none":
        return {}
    return {
        "depth": depth_scale(reconstruction, config, progress),
        "tags": tag_scale(reconstruction, config, progress),
        "distance": distance_scale(reconstruction, frame_set, config),
    }


def _odometry(T_sfm: np.ndarray, T_given: np.ndarray, config: MetricConfig) -> Scale:
    if len(T_sfm) < 3:
        return Scale(
            "odometry",
            None,
            f"{len(T_sfm)} registered images have a pose from odometry, TF or the user; "
            "expected at least 3",
            absent=not len(T_sfm),
        )
    return odometry_scale(fit_poses(T_sfm, T_given, config), config)


def _choose(scales: dict[str, Scale], config: MetricConfig) -> Scale | None:
    """The scale to use, or None for a scene without one; SldError where the one that the user asked
    for cannot be used."""
    if config.source == "none":
        return None
    if config.source != "auto":
        chosen = scales[config.source]
        if chosen.metres_per_unit is None:
            raise SldError(f"no scale from {config.source}: {chosen.reason}")
        return chosen
    usable = [scales[name] for name in SOURCES if scales[name].metres_per_unit is not None]
    wanted = [scales[name] for name in ("tags", "distance") if not scales[name].absent]
    if not usable and wanted:
        reasons = "; ".join(f"{s.source}: {s.reason}" for s in wanted)
        raise SldError(f"no scale from {reasons} (to go on without a scale: metric.source=none)")
    return usable[0] if usable else None


def _summary(
    scales: dict[str, Scale], chosen: Scale | None, config: MetricConfig
) -> tuple[dict[str, float], list[str]]:
    """The residuals and notes of all sources, and how they agree with the chosen one."""
    residual, notes = {}, []
    for s in scales.values():
        residual |= s.residual
        if s.metres_per_unit is not None:
            notes += s.notes
        elif not s.absent:
            notes.append(f"no scale from {s.source}: {s.reason}")
        if chosen and s.metres_per_unit is not None and s is not chosen:
            ratio = s.metres_per_unit / chosen.metres_per_unit
            residual[f"{s.source}_scale_ratio"] = ratio
            if abs(math.log(ratio)) > config.max_disagreement:
                notes.append(
                    f"{s.source} gives a scale {100 * (ratio - 1):+.1f} % off that from "
                    f"{chosen.source}, which is used (metric.source={s.source} uses the other)"
                )
    return residual, notes


def _frame_fit(
    T_sfm: np.ndarray, T_given: np.ndarray, scale: float | None, config: MetricConfig
) -> tuple[PoseFit | None, str]:
    """The fit to the given poses that defines the frame, or why there is none (empty without given
    poses)."""
    if len(T_sfm) < 3:
        return None, ""
    # a camera that turned on the spot has no free scale to fit; any fixed one gives its rotation
    fit = fit_poses(T_sfm, T_given, config, scale) or fit_poses(T_sfm, T_given, config, 1.0)
    misfit = misfit_of(fit, config)
    return (None, misfit) if misfit else (fit, "")


@dataclass(frozen=True)
class _Frame:
    """Rotation and translation into the frame of the map, what makes its z point up, and how planes
    and views agree with that."""

    R: np.ndarray
    t: np.ndarray
    upright: str
    residual: dict[str, float]
    notes: list[str]


def _frame(
    reconstruction: Reconstruction,
    frame_set: FrameSet,
    fit: PoseFit | None,
    scale: float,
    metric: bool,
    config: MetricConfig,
) -> _Frame:
    residual, notes = {}, []
    up = find_up(reconstruction, config)
    if up.kind == "planes":
        residual = {"planes_to_views_deg": up.planes_to_views_deg, "planes_share": up.support}
    direction, upright = up.direction_3, up.kind
    if fit is not None and frame_set.world_z_up:
        direction, upright = fit.R[2], "tf"
        off_deg = residual["up_to_tf_deg"] = angle_deg(up.direction_3, direction)
        if up.kind == "planes" and off_deg > MAX_TILT_TO_TF_DEG:
            notes.append(
                f"floors and walls are tilted by {off_deg:.1f} deg in the frame of the given poses"
            )
    if fit is not None and metric:
        residual |= residual_of(fit)
        if upright == "tf":
            return _Frame(fit.R, fit.t, "tf", residual, notes)
        notes.append(
            f"the frame of the given poses ({frame_set.world_frame or 'unnamed'}) is kept; it is "
            "not known to have z up"
        )
        return _Frame(fit.R, fit.t, "none", residual, notes)
    if upright != "tf" and up.note:
        notes.append(up.note)
    first = reconstruction.frames[0].T_world_camera
    R = upright_rotation(direction, first)
    return _Frame(R, -scale * R @ first[:3, 3], upright, residual, notes)
