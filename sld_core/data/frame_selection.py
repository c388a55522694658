"""Images that may become frames, and which of them are left out because they are blurred or show
nothing new."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np

from sld_core.config.mapping import FramesConfig
from sld_core.types import Camera

NEIGHBOURS = 4  # frames before and after, within the session, with which sharpness is compared
SHARPNESS_SIDE, THUMBNAIL = 640, (64, 48)


@dataclass(frozen=True)
class Candidate:
    """An image that may become a frame: `image_HW3` uint8 RGB, undistorted where the lens is known.
    `jpeg` is the original file, where nothing was changed. `depth_mm_HW` is uint16 millimetres, 0 =
    none, aligned with the image, at any resolution."""

    image_HW3: np.ndarray
    camera: Camera
    session: str
    source: str
    stamp_ns: int = 0
    T_world_camera: np.ndarray | None = None
    jpeg: bytes | None = None
    depth_mm_HW: np.ndarray | None = None


@dataclass(frozen=True)
class Rejection:
    """A source that is left out; `reason` begins with a kind and a colon, such as "damaged: no
    JPEG"."""

    source: str
    reason: str


@dataclass(frozen=True)
class FrameQuality:
    """What the choice among frames needs to know of one."""

    session: str
    source: str
    sharpness: float
    thumbnail_HW: np.ndarray


def measure_quality(candidate: Candidate) -> FrameQuality:
    """Sharpness is the variance of the Laplacian, at 640 pixels so that noise of large sensors
    counts little."""
    grey = cv2.cvtColor(candidate.image_HW3, cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
    return FrameQuality(
        candidate.session, candidate.source, float(cv2.Laplacian(grey, cv2.CV_32F).var()), thumbnail
    )


def select(
    qualities: list[FrameQuality], config: FramesConfig
) -> tuple[list[int], list[Rejection]]:
    """Indices of the frames to keep, and why the others are not; `qualities` of one session are in
    the order of time."""
    rejections: list[Rejection] = []
    sharp = [
        i
        for i in range(len(qualities))
        if not _note(rejections, qualities[i], _blurred(qualities, i, config.reject_blurred))
    ]
    keep: list[int] = []
    last: dict[str, FrameQuality] = {}
    for i in sharp:
        reason = _similar(qualities[i], last.get(qualities[i].session), config.reject_similar)
        if not _note(rejections, qualities[i], reason):
            keep.append(i)
            last[qualities[i].session] = qualities[i]
    return keep, rejections


def count_reasons(rejected: dict[str, str]) -> dict[str, int]:
    """Kind of reason -> how many sources were left out for it, the most frequent first."""
    return dict(Counter(reason.split(":")[0] for reason in rejected.values()).most_common())


def _note(rejections: list[Rejection], quality: FrameQuality, reason: str) -> bool:
    if reason:
        rejections.append(Rejection(quality.source, reason))
    return bool(reason)


def _blurred(qualities: list[FrameQuality], i: int, part: float) -> str:
    near = range(max(0, i - NEIGHBOURS), min(len(qualities), i + NEIGHBOURS + 1))
    around = [j for j in near if j != i and qualities[j].session == qualities[i].session]
    if part == 0 or not around:
        return ""
    usual = float(np.median([qualities[j].sharpness for j in around]))
    if qualities[i].sharpness >= part * usual:
        return ""
    return (
        f"blurred: sharpness {qualities[i].sharpness:.0f} is below {part:g} of its "
        f"neighbours' {usual:.0f}"
    )


def _similar(quality: FrameQuality, last: FrameQuality | None, threshold: float) -> str:
    if threshold == 0 or last is None:
        return ""
    difference = float(np.abs(quality.thumbnail_HW - last.thumbnail_HW).mean())
    return (
        f"nearly identical: {difference:.2f} of 255 from {last.source}"
        if difference < threshold
        else ""
    )
