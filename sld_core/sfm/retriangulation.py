"""The last step of structure from motion: points from verified matches only, and scale errors
between parts of the map corrected by depth images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sld_core.config.mapping import SfmConfig
from sld_core.optional import pycolmap
from sld_core.sfm.depth_bundle_adjustment import held_by_depth
from sld_core.sfm.mapper import adjust, drop_misfits
from sld_core.sfm.triangulation import triangulate
from sld_core.types import FrameSet, Progress


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
    return held_by_depth(model, renew, {f.image_path.name: f for f in frame_set.frames}, config)
