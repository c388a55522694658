"""What a head is taught: labelled frames, the landmarks, and a few frames held out for
validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.config.scene import MIN_LANDMARKS, LandmarkConfig, SceneConfig
from sld_core.config.settings import range_of
from sld_core.landmarks import selection, visibility
from sld_core.landmarks.matchability import matchability
from sld_core.landmarks.normals import normals_of
from sld_core.models.backbone import Backbone
from sld_core.sfm import triangulation
from sld_core.sfm.subset import without_frames
from sld_core.spread import spread
from sld_core.training.run import ignore
from sld_core.training.working_images import upright_angles
from sld_core.types import Frame, Labels, Landmarks, Progress, SceneData, SldError, Visibility

MIN_VALIDATION = 3  # validation frames that must all fail before a scene is refused


@dataclass(frozen=True)
class TrainingSet:
    """`frames` to learn from with their `labels` (row i is of frame i), and `validation`, frames
    held out. All coordinates are relative to `origin_3`."""

    frames: tuple[Frame, ...]
    landmarks: Landmarks
    labels: Labels
    validation: tuple[Frame, ...]
    origin_3: np.ndarray
    metric: bool
    counts: dict[str, int] = field(default_factory=dict)  # for the report


def from_frames(
    frames: Sequence[Frame],
    work: Path,
    config: SceneConfig,
    backbone: Backbone,
    progress: Callable[[Progress], None] = ignore,
    stage: Callable[[str], AbstractContextManager] = nullcontext,
    metric: bool = True,
) -> TrainingSet:
    """Make tracks, landmarks and labels from frames with poses, in metres where `metric`.

    `work` keeps the tracks. Validation frames are held out in chunks before landmarks are chosen.
    `stage` is entered around each stage."""
    triangulation.check(frames)
    origin_3 = origin_of(frames)
    frames = [moved(f, -origin_3) for f in frames]
    # depth is in metres, and says nothing of poses that are not
    tracks = config.tracks if metric else replace(config.tracks, depth_spread=0.0)
    with stage("tracks"):
        whole = triangulation.reconstruct_once(frames, work, tracks, config.seed, progress)
    with stage("landmarks"):
        held_out = hold_out(len(frames), config.validation_fraction)
        seen = without_frames(whole, held_out)
        match_N = None
        if config.landmarks.matchability_weight > 0:
            match_N = matchability(
                seen,
                backbone,
                config.image.max_side_px,
                config.landmarks,
                np.random.default_rng(config.seed),
                progress,
                upright_angles(seen.frames),
            )
        landmarks = selection.select(seen, config.landmarks, match_N)
        normals_L3 = None
        if config.labels.use_normals:
            normals_L3 = normals_of(seen, landmarks, config.labels)
        labels = visibility.label(seen, landmarks, config.labels, normals_L3)
    validation = tuple(whole.frames[i] for i in held_out)
    counts = {"points": len(whole.points_N3)}
    return TrainingSet(seen.frames, landmarks, labels, validation, origin_3, metric, counts)


def from_data(data: SceneData, validation_fraction: float) -> TrainingSet:
    """The training set of a labelled dataset, whose frames may come from several cameras.

    Frames of split "train" are learned; those of "val" validate, or held-out training frames where
    there are none. Frames of "test" are never used."""
    train, validation = split_rows(data.split_F, validation_fraction)
    _check(data, train)
    learned = [data.frames[i] for i in train]
    origin_3 = origin_of(learned)
    frames = tuple(moved(f, -origin_3) for f in learned)
    landmarks = replace(data.landmarks, xyz_L3=data.landmarks.xyz_L3 - origin_3)
    labels = Labels(data.visibility_FL[train], projections(frames, landmarks.xyz_L3))
    held_out = tuple(moved(data.frames[i], -origin_3) for i in validation)
    return TrainingSet(frames, landmarks, labels, held_out, origin_3, data.metric)


def first_landmarks(data: SceneData, count: int) -> SceneData:
    """The dataset with only the first `count` landmarks; they are stored in order of choice."""
    if count > len(data.landmarks):
        raise SldError(
            f"{count} landmarks were asked for, the dataset has {len(data.landmarks)}; ask for "
            "at most that many, or map it again with more"
        )
    landmarks = Landmarks(data.landmarks.xyz_L3[:count], data.landmarks.point_L[:count])
    return replace(data, landmarks=landmarks, visibility_FL=data.visibility_FL[:, :count])


def split_rows(split_F: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Rows to learn from and rows to validate with: of "val", thinned evenly, or else held out from
    "train". These are about `fraction` of both together, of "val" at least MIN_VALIDATION."""
    train = [i for i, split in enumerate(split_F) if split == "train"]
    val = [i for i, split in enumerate(split_F) if split == "val"]
    if not val:
        validation = [train[i] for i in hold_out(len(train), fraction)]
        return [i for i in train if i not in validation], validation
    wanted = round(fraction * (len(train) + len(val)))
    if fraction > 0:
        wanted = min(max(wanted, MIN_VALIDATION), len(val))
    return train, spread(val, wanted)


def projections(frames: Sequence[Frame], xyz_L3: np.ndarray) -> np.ndarray:
    """Pixels of each landmark in each frame (F, L, 2); NaN behind the camera."""
    return np.stack(
        [geometry.project(f.camera, geometry.invert(f.T_world_camera), xyz_L3)[0] for f in frames]
    )


def _check(data: SceneData, train: list[int]) -> None:
    """Raise SldError unless there is enough to learn from."""
    low, (_, high) = MIN_LANDMARKS, range_of(LandmarkConfig, "count")
    if not low <= len(data.landmarks) <= high:
        raise SldError(
            f"the dataset has {len(data.landmarks)} landmarks; expected {low} to {high}"
            + (", choose fewer with --landmarks N" if len(data.landmarks) > high else "")
        )
    if not train:
        raise SldError(
            f"none of {len(data.frames)} frames of the dataset is for training; expected "
            "frames of split train"
        )
    shown = int((data.visibility_FL[train] == Visibility.VISIBLE).any(0).sum())
    if shown < low:
        raise SldError(
            f"only {shown} of {len(data.landmarks)} landmarks are visible in any of "
            f"{len(train)} training frames; expected at least {low}: are landmarks and visibility "
            "of the same dataset?"
        )


def origin_of(frames: Sequence[Frame]) -> np.ndarray:
    """A round position near the cameras. Far from the world's origin, as in UTM coordinates, single
    precision and pose solvers lose centimetres."""
    return np.mean([f.T_world_camera[:3, 3] for f in frames], axis=0).round()


def moved(frame: Frame, by_3: np.ndarray) -> Frame:
    """The frame with its camera moved by `by_3`."""
    T = frame.T_world_camera.copy()
    T[:3, 3] += by_3
    return replace(frame, T_world_camera=T)


def hold_out(count: int, fraction: float, chunk: int = 5) -> list[int]:
    """Indices of about `fraction` of `count` frames, in contiguous chunks spread over the drive:
    neighbours of a test frame are nearly the test frame."""
    wanted = round(count * fraction)
    if wanted == 0:
        return []
    chunks = max(1, round(wanted / chunk))
    size = round(wanted / chunks)
    starts = (np.arange(chunks) + 0.5) * count / chunks - size / 2
    return [i for start in starts.round().astype(int) for i in range(start, start + size)]
