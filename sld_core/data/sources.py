"""Videos, photographs and bags -> frame sets: the first stage of mapping."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sld_core.camera.calibration import Calibration
from sld_core.config.mapping import FramesConfig
from sld_core.config.scene import BagConfig
from sld_core.data import bag_frames, photos, video
from sld_core.data.frame_selection import (
    Candidate,
    FrameQuality,
    Rejection,
    count_reasons,
    measure_quality,
    select,
)
from sld_core.data.frame_set import write_frame_set
from sld_core.data.image_files import write_bytes, write_depth, write_jpeg
from sld_core.types import Frame, FrameSet, Progress, SldError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the images come from: exactly one of a folder of photographs, videos, or a bag."""

    images: Path | None = None
    videos: tuple[Path, ...] = ()
    bag: Path | None = None
    list_path: Path | None = None  # of `images`
    with_poses: bool = False  # *.pose.txt beside the images
    calibration: Path | None = None


def fingerprint(source: Source) -> list[tuple[str, int, int]]:
    """Path, size and time of every file of the source that is read; SldError where something is
    missing or no file."""
    roots = [
        p
        for p in (source.images, source.bag, source.list_path, source.calibration, *source.videos)
        if p is not None
    ]
    for root in roots:
        if not root.exists():
            raise SldError(f"{root}: no such file or folder")
        if not (root.is_file() or root.is_dir()):
            raise SldError(f"{root}: a device or pipe; expected a file or folder")
    photographs = (
        photos.files_read(source.images, source.list_path, source.with_poses)
        if source.images
        else []
    )
    paths = [*photographs, *(p for root in roots if root != source.images for p in _files(root))]
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def _files(root: Path) -> list[Path]:
    """All files of a folder, or the file itself."""
    return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]


def from_videos(
    videos: Sequence[Path],
    folder: Path,
    config: FramesConfig = FramesConfig(),
    calibration: Calibration | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> FrameSet:
    """Frames of videos, one session each, `config.fps` a second by the time stamps in the files.
    `folder` must be empty.

    Images are turned upright as players do (the rotation in the file's metadata). A video that
    cannot be read is named in `rejected`; SldError when no frame is left."""
    found = video.candidates([Path(path) for path in videos], config, calibration, progress)
    frames, rejected = _collect(found, Path(folder), config, f"{len(videos)} videos")
    return _finished(Path(folder), FrameSet(frames, calibration is not None, rejected=rejected))


def from_photos(
    images: Path,
    folder: Path,
    config: FramesConfig = FramesConfig(),
    calibration: Calibration | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    list_path: Path | None = None,
    with_poses: bool = False,
) -> FrameSet:
    """Frames of the JPEG and PNG files below `images`, or of those that `list_path` names; a
    session per subfolder.

    `camera-intrinsics.txt` in the folder stands in for a missing `calibration`. `x.depth.png`
    beside `x.jpg` or `x.color.jpg` is its depth, `x.pose.txt` its pose (`with_poses`). EXIF
    orientation is ignored. `folder` must be empty."""
    images = Path(images)
    calibration = calibration or photos.calibration_beside(images)
    found = photos.candidates(images, calibration, progress, list_path, with_poses)
    frames, rejected = _collect(found, Path(folder), config, str(images))
    world = "given" if any(frame.T_world_camera is not None for frame in frames) else ""
    return _finished(
        Path(folder), FrameSet(frames, calibration is not None, world, rejected=rejected)
    )


def from_bag(
    bag: Path,
    folder: Path,
    config: FramesConfig = FramesConfig(),
    bag_config: BagConfig = BagConfig(),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> FrameSet:
    """Keyframes of a rosbag2 recording with the poses of TF or odometry at their stamps, and
    registered depth where there is.

    Where most images have poses they are chosen by motion, else by time; without any, or without
    CameraInfo, the frame set says so. A bag that ends early gives what it holds. `folder` must be
    empty."""
    drive = bag_frames.survey(Path(bag), bag_config, progress)
    found = bag_frames.candidates(drive, config, bag_config, progress)
    frames, rejected = _collect(found, Path(folder), config, str(bag))
    frames = bag_frames.with_depth(drive, frames, Path(folder), bag_config, progress)
    return _finished(
        Path(folder),
        FrameSet(
            frames,
            drive.calibration is not None,
            drive.world_frame,
            bool(drive.world_frame),
            rejected,
        ),
    )


def _collect(
    found: Iterable[Candidate | Rejection], folder: Path, config: FramesConfig, what: str
) -> tuple[tuple[Frame, ...], dict[str, str]]:
    """Write every candidate, then take back those that the choice rejects: it looks at frames
    before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SldError(f"{folder}: holds files; expected an empty folder")
    frames: list[Frame] = []
    qualities: list[FrameQuality] = []
    rejected: dict[str, str] = {}
    choosy = config.reject_blurred > 0 or config.reject_similar > 0
    for item in found:
        if isinstance(item, Rejection):
            rejected[item.source] = item.reason
            continue
        frames.append(_write(item, folder, len(frames), config.jpeg_quality))
        if choosy:
            qualities.append(measure_quality(item))
    if choosy:
        keep, rejections = select(qualities, config)
        rejected |= {rejection.source: rejection.reason for rejection in rejections}
        frames = _only(frames, keep)
    if not frames:
        first = next((f": {source}: {reason}" for source, reason in rejected.items()), "")
        raise SldError(f"{what}: no usable image ({len(rejected)} left out{first})")
    return tuple(frames), rejected


def _finished(folder: Path, frame_set: FrameSet) -> FrameSet:
    write_frame_set(folder, frame_set)
    sessions = len({frame.session for frame in frame_set.frames})
    left_out = ", ".join(
        f"{count} {kind}" for kind, count in count_reasons(frame_set.rejected).items()
    )
    log.info(
        "%d frames of %d sessions; left out: %s",
        len(frame_set.frames),
        sessions,
        left_out or "none",
    )
    return frame_set


def _write(item: Candidate, folder: Path, number: int, quality: int) -> Frame:
    name = f"image-{number:06d}"
    image_path, depth_path = folder / f"{name}.color.jpg", folder / f"{name}.depth.png"
    write_jpeg(image_path, item.image_HW3, quality) if item.jpeg is None else write_bytes(
        image_path, item.jpeg
    )
    if item.depth_mm_HW is not None:
        write_depth(depth_path, item.depth_mm_HW)
    return Frame(
        name,
        image_path,
        item.camera,
        item.T_world_camera,
        None if item.depth_mm_HW is None else depth_path,
        item.stamp_ns,
        item.session,
        item.source,
    )


def _only(frames: list[Frame], keep: list[int]) -> list[Frame]:
    """The frames to keep, renumbered; the files of the others, written a moment ago, are
    removed."""
    for i in sorted(set(range(len(frames))) - set(keep)):
        for path in filter(None, (frames[i].image_path, frames[i].depth_path)):
            path.unlink()
    return [_renamed(frames[i], f"image-{number:06d}") for number, i in enumerate(keep)]


def _renamed(frame: Frame, name: str) -> Frame:
    image_path = frame.image_path.rename(frame.image_path.with_name(f"{name}.color.jpg"))
    depth_path = frame.depth_path and frame.depth_path.rename(
        frame.depth_path.with_name(f"{name}.depth.png")
    )
    return dataclasses.replace(frame, name=name, image_path=image_path, depth_path=depth_path)
