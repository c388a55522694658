"""Which frame shows which landmark, and where: tri-state, from tracks, depth images and surface
normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sld_core import geometry
from sld_core.camera.images import read_depth
from sld_core.config.scene import LabelConfig
from sld_core.landmarks.normals import faces_away, observations
from sld_core.types import Frame, Labels, Landmarks, Reconstruction, Visibility


@dataclass(frozen=True)
class LabelReport:
    """Shares (0..1) of visibility over all frames and landmarks, and what geometry alone says where
    a track saw the landmark: a large `tracked_hidden` means that depth or normals are wrong."""

    visible: float
    hidden: float
    unknown: float
    tracked: int  # observations of landmarks by tracks
    tracked_visible: float | None
    tracked_hidden: float | None
    tracked_unknown: float | None
    fewest_visible: int  # landmarks in the frame that shows fewest


def label(
    reconstruction: Reconstruction,
    landmarks: Landmarks,
    config: LabelConfig,
    normals_L3: np.ndarray | None = None,
) -> Labels:
    """Labels of all frames. A landmark is VISIBLE where its track was seen or the depth image
    agrees; HIDDEN outside the image, behind something nearer, or where its surface (`normals_L3`,
    NaN: unknown) faces away; else UNKNOWN."""
    return label_and_report(reconstruction, landmarks, config, normals_L3)[0]


def label_and_report(
    reconstruction: Reconstruction,
    landmarks: Landmarks,
    config: LabelConfig,
    normals_L3: np.ndarray | None = None,
) -> tuple[Labels, LabelReport]:
    """`label`, and how well geometry and tracks agree."""
    shape = len(reconstruction.frames), len(landmarks)
    visibility_FL = np.full(shape, Visibility.HIDDEN, np.uint8)
    xy_FL2 = np.full((*shape, 2), np.nan)
    for i, frame in enumerate(reconstruction.frames):
        visibility_FL[i], xy_FL2[i] = label_frame(frame, landmarks.xyz_L3, config, normals_L3)
    landmark, frame = observations(reconstruction, landmarks)
    inside = _inside(reconstruction.frames, xy_FL2)[frame, landmark]
    frame, landmark = frame[inside], landmark[inside]
    called = agreement(visibility_FL, frame, landmark)
    # a track was seen: no depth image knows better
    visibility_FL[frame, landmark] = Visibility.VISIBLE
    shares = {state.name.lower(): float((visibility_FL == state).mean()) for state in Visibility}
    fewest = int((visibility_FL == Visibility.VISIBLE).sum(1).min(initial=len(landmarks)))
    return Labels(visibility_FL, xy_FL2), LabelReport(**shares, **called, fewest_visible=fewest)


def agreement(
    visibility_FL: np.ndarray, frame_M: np.ndarray, landmark_M: np.ndarray
) -> dict[str, float | None]:
    """What `visibility_FL`, made without tracks, says of the observations of tracks: their number,
    and the share of each state (None without observations)."""
    said = visibility_FL[frame_M, landmark_M]
    shares = {
        f"tracked_{state.name.lower()}": float((said == state).mean()) if len(said) else None
        for state in Visibility
    }
    return {"tracked": len(said), **shares}


def label_frame(
    frame: Frame, xyz_L3: np.ndarray, config: LabelConfig, normals_L3: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Visibility (L,) and projections (L, 2) from geometry and depth alone, without tracks."""
    xy_L2, z_L = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), xyz_L3)
    inside = _inside([frame], xy_L2[None])[0] & (z_L > 0)
    visibility = np.where(inside, Visibility.UNKNOWN, Visibility.HIDDEN).astype(np.uint8)
    if config.use_depth and frame.depth_path is not None:
        position = xy_L2[inside] / [frame.camera.width, frame.camera.height]
        visibility[inside] = from_depth(read_depth(frame.depth_path), position, z_L[inside], config)
    if normals_L3 is not None:
        away = faces_away(normals_L3, frame.T_world_camera[:3, 3] - xyz_L3, config)
        visibility[away] = Visibility.HIDDEN
    return visibility, xy_L2


def from_depth(
    depth_HW: np.ndarray, position_K2: np.ndarray, z_K: np.ndarray, config: LabelConfig
) -> np.ndarray:
    """Visibility (K,) of landmarks at `position_K2` (0..1 of width and height) and depth z.

    VISIBLE where a depth nearby agrees, HIDDEN where all depths nearby are known and nearer by more
    than the paper's 30 %."""
    height, width = depth_HW.shape
    centre = np.floor(position_K2 * [width, height]).astype(int)
    reach = np.arange(-config.depth_reach_px, config.depth_reach_px + 1)
    dy, dx = (g.ravel() for g in np.meshgrid(reach, reach, indexing="ij"))
    row = np.clip(centre[:, 1:] + dy, 0, height - 1)
    column = np.clip(centre[:, :1] + dx, 0, width - 1)
    depth = depth_HW[row, column]
    known, z = depth > 0, z_K[:, None]
    agrees = (known & (np.abs(depth - z) < config.depth_tolerance * z)).any(1)
    behind = (known & (depth < config.occluded_ratio * z)).all(1)
    state = np.where(agrees & config.depth_shows, Visibility.VISIBLE, Visibility.UNKNOWN)
    return np.where(behind, Visibility.HIDDEN, state).astype(np.uint8)


def _inside(frames, xy_FL2: np.ndarray) -> np.ndarray:
    """Which projections (F, L) lie in the image."""
    size_F2 = np.array([(f.camera.width, f.camera.height) for f in frames])
    with np.errstate(invalid="ignore"):
        return ((xy_FL2 >= 0) & (xy_FL2 < size_F2[:, None])).all(2)
