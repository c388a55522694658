"""Frames of videos, chosen by their time stamps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from sld_core.camera.calibration import Calibration, Lenses
from sld_core.camera.encodings import MAX_PIXELS
from sld_core.config.mapping import FramesConfig
from sld_core.data.frame_selection import Candidate, Rejection
from sld_core.data.session_names import session_labels
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)

USUAL_FPS = 30.0  # of a video that has neither time stamps nor a rate
MAX_SIDE = 16384
MAX_SECONDS = 1e6  # beyond, a time stamp is damaged


def candidates(
    videos: list[Path],
    config: FramesConfig,
    calibration: Calibration | None,
    progress: Callable[[Progress], None],
) -> Iterator[Candidate | Rejection]:
    """Images of each video, in order; a video that cannot be read, or ends early, becomes a
    Rejection."""
    lenses, names = Lenses(calibration), session_names(videos)
    sessions = session_labels(names)
    for i, (video, name) in enumerate(zip(videos, names, strict=True)):
        share = Share(progress, i, len(videos))
        try:
            yield from _of_video(video, name, sessions[name], config, lenses, share)
        except SldError as error:
            yield Rejection(str(video), str(error))


@dataclass(frozen=True)
class Share:
    """Progress of one video among `count`."""

    progress: Callable[[Progress], None]
    number: int
    count: int

    def __call__(self, fraction: float) -> None:
        self.progress(Progress("reading videos", (self.number + fraction) / self.count))


def session_names(videos: list[Path]) -> list[str]:
    """The stem of each file; where several have the same, with as many folders before it as tell
    them apart, and its suffix."""
    if len({path.resolve() for path in videos}) < len(videos):
        raise SldError(f"videos {', '.join(map(str, videos))}: the same file is named twice")
    depth = max((len(path.resolve().parts) for path in videos), default=1)
    names = [
        [_name(path, folders, suffix) for folders in range(depth) for suffix in (False, True)]
        for path in videos
    ]
    of_length = [[row[k] for row in names] for k in range(2 * depth)]
    return [
        next(row[k] for k in range(2 * depth) if of_length[k].count(row[k]) == 1) for row in names
    ]


def _name(video: Path, folders: int, suffix: bool) -> str:
    path = video.resolve()
    parents = [part for part in path.parts[:-1] if part != path.anchor]
    return "/".join(
        [*parents[max(0, len(parents) - folders) :], path.name if suffix else path.stem]
    )


def _of_video(
    video: Path,
    name: str,
    session: str,
    config: FramesConfig,
    lenses: Lenses,
    progress: Callable[[float], None],
) -> Iterator[Candidate | Rejection]:
    capture = _open(video)
    try:
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        fps = fps if 0 < fps <= 1000 else USUAL_FPS
        count = count if 0 < count < 1e9 else 0.0  # OpenCV's guess, from the duration in the header
        label = name.removesuffix(video.suffix) + video.suffix
        lens, read, slot, time_s = None, 0, -1, 0.0
        while capture.grab():
            time_s = _time(capture, read, time_s, fps)
            read += 1
            now = math.floor(time_s * config.fps + 1e-3)
            if now <= slot:
                continue
            decoded, bgr = capture.retrieve()
            if not decoded:
                continue
            slot = now
            try:
                lens = lens or lenses(bgr.shape[1], bgr.shape[0])
                image = lens(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
            except SldError as error:
                raise SldError(f"other size: {error}") from None
            yield Candidate(
                image, lens.camera, session, f"{label} at {time_s:.2f} s", round(time_s * 1e9)
            )
            progress(min(1.0, read / count) if count else 0.0)
    finally:
        capture.release()
    if slot < 0:
        raise SldError("damaged: the video has no frame that can be decoded")
    if read < 0.95 * count - 2:  # the header says how many there should be
        log.warning(
            "%s is cut off or damaged after %.1f s: only the part before is used", video, time_s
        )
        yield Rejection(
            f"{label} after {time_s:.2f} s",
            f"damaged: the video ends after {read} of about {count:.0f} images",
        )


def _open(video: Path) -> cv2.VideoCapture:
    """A local video file, opened, with images of a size that can be decoded."""
    _check_file(video)
    # an absolute path is not taken for a URL, nor, by FFMPEG, for a numbered series of images
    capture = cv2.VideoCapture(str(video.resolve()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise SldError(
            "no video: cannot be opened (expected a format that FFmpeg reads, such as mp4)"
        )
    width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        capture.release()
        raise SldError(
            f"too large: images of {width}x{height} pixels; expected at most {MAX_PIXELS} pixels"
        )
    return capture


def _check_file(video: Path) -> None:
    """FFmpeg takes some text files for playlists, and then opens what they name, even on other
    machines."""
    try:
        # to open a pipe is to wait for its writer
        if video.exists() and not (video.is_file() or video.is_dir()):
            raise SldError("no video: a device or pipe; expected a file")
        with open(video, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise SldError(f"unreadable: {error.strerror}") from None
    if not head:
        raise SldError("no video: the file is empty")
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        raise SldError("no video: a text file")


def _time(capture: cv2.VideoCapture, read: int, before_s: float, fps: float) -> float:
    """Seconds of the image just grabbed since the video's start; by its number where time stamps
    are missing."""
    time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    is_usable = 0 <= time_s < MAX_SECONDS  # false for NaN
    if read == 0:
        return time_s if is_usable else 0.0
    return time_s if is_usable and time_s > before_s else before_s + 1 / fps
