"""Parts of a reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sld_core.types import Reconstruction


def without_frames(reconstruction: Reconstruction, left_out: Sequence[int]) -> Reconstruction:
    """The reconstruction as seen by all frames but those of `left_out`; indices of points stay as
    they are."""
    if not len(left_out):
        return reconstruction
    keep_F = np.ones(len(reconstruction.frames), bool)
    keep_F[list(left_out)] = False
    new_index = np.cumsum(keep_F) - 1
    keep = keep_F[reconstruction.obs_frame_M]
    return dataclasses.replace(
        reconstruction,
        frames=tuple(f for f, k in zip(reconstruction.frames, keep_F) if k),
        obs_point_M=reconstruction.obs_point_M[keep],
        obs_frame_M=new_index[reconstruction.obs_frame_M[keep]],
        obs_xy_M2=reconstruction.obs_xy_M2[keep],
    )
