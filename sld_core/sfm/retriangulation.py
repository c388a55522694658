"""The last step of structure from motion: points from verified matches only, and scale errors
between parts of the map corrected by depth images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

from sld_core.config.mapping import SfmConfig
from sld_core.optional import pycolmap
from sld_core.sfm.depth_bundle_adjustment import adjust_with_depth, scale_spread
from sld_core.sfm.mapper import adjust, drop_misfits
from sld_core.sfm.triangulation import triangulate
from sld_core.types import Frame, FrameSet, Progress

KEPT_OBSERVATIONS = 0.9  # of those without depth images, that an adjustment by them must explain


def retriangulate(
    model: pycolmap.Reconstruction,
    database: Path,
    frame_set: FrameSet,
    config: SfmConfig,
    seed: int,
    progress: Callable[[Progress], None],
) -> tuple[pycolmap.Reconstruction, list[str]]:
    """The model with its points triangulated again from the matches in `database`, as `sld teach`
    does it, and adjusted again; with depth images too, where these show that parts of it differ in
    scale. And notes.

    Completed tracks make poses precise, but contain observations that were accepted because the
    point was expected there: a head taught with landmarks and labels from them is less accurate."""

    def renew(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
        error_px, angle_deg = config.track_reprojection_px, config.min_triangulation_deg
        return triangulate(model, database, error_px, angle_deg, seed)

    progress(Progress("triangulating", 0.0))
    model = renew(model)
    adjust(model, frame_set.intrinsics_known)
    drop_misfits(model, config.reprojection_px, config.min_triangulation_deg)
    model = renew(model)
    if not (frame_set.intrinsics_known and config.depth_baseline_m):
        return model, []
    progress(Progress("comparing with depth images", 0.5))
    return _held_by_depth(model, renew, {f.image_path.name: f for f in frame_set.frames}, config)


def _held_by_depth(
    model: pycolmap.Reconstruction,
    renew: Callable[[pycolmap.Reconstruction], pycolmap.Reconstruction],
    frame_of: Mapping[str, Frame],
    config: SfmConfig,
) -> tuple[pycolmap.Reconstruction, list[str]]:
    """The model adjusted with depth images, if their scales disagree before and agree afterwards;
    else unchanged."""
    before = scale_spread(model, frame_of, config.depth_jump)
    if before is None or before[1] <= config.depth_spread:
        return model, []
    said = (
        f"one image in ten disagreed with the map's scale by {100 * before[1]:.0f} % or "
        "more, by its depth"
    )
    matched, held = copy.deepcopy(model), copy.deepcopy(model)
    drop_misfits(matched, config.reprojection_px, 0.0)
    done = _adjust_with_depth(held, frame_of, config)
    if done:
        held = renew(held)
        done = _adjust_with_depth(held, frame_of, config)
    held.update_point_3d_errors()
    after = scale_spread(held, frame_of, config.depth_jump)
    helps = (
        done
        and after is not None
        and (after < before / 2).any()
        and (after < 1.2 * before).all()
        and held.compute_num_observations()
        >= KEPT_OBSERVATIONS * matched.compute_num_observations()
    )
    if not helps:
        return model, [
            f"{said}; depth images do not fit the matches, and the map is made without them: "
            "are they aligned with the images?"
        ]
    return held, [
        f"{said}: depth images took part in the adjustment, which leaves {100 * after[1]:.0f} %"
    ]


def _adjust_with_depth(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame], config: SfmConfig
) -> bool:
    done = adjust_with_depth(model, frame_of, config.depth_baseline_m, config.depth_jump)
    drop_misfits(model, config.reprojection_px, 0.0)
    return done
