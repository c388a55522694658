"""Videos, photographs, bags and COLMAP models -> frame sets: where mapping and teaching start."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sld_core import stages
from sld_core.camera.calibration import Calibration
from sld_core.config.mapping import FramesConfig
from sld_core.config.scene import BagConfig
from sld_core.data import bag_frames, colmap_frames, photos, video
from sld_core.data.frame_selection import (
    Candidate,
    FrameQuality,
    Rejection,
    count_reasons,
    measure_quality,
    select,
)
from sld_core.data.frame_set import read_frame_set, write_frame_set
from sld_core.data.image_files import write_bytes, write_depth, write_jpeg
from sld_core.types import Frame, FrameSet, Progress, SldError

log = logging.getLogger(__name__)

IMAGES = "images"  # of the folder of teaching_frames
TOLD = 10  # rejections told one by one


@dataclass(frozen=True)
class Source:
    """Where the images come from: exactly one of a folder of photographs, videos, or a bag; or a
    COLMAP model with the folder of its images."""

    images: Path | None = None
    videos: tuple[Path, ...] = ()
    bag: Path | None = None
    list_path: Path | None = None  # of `images`
    with_poses: bool = False  # *.pose.txt beside the images
    calibration: Path | None = None
    model: Path | None = None  # COLMAP's, of `images`
    metres_per_unit: float | None = None  # of the model, where that is known


def fingerprint(source: Source) -> list[tuple[str, int, int]]:
    """Path, size and time of every file of the source that is read; SldError where something is
    missing or no file."""
    others = (source.bag, source.list_path, source.calibration, source.model, *source.videos)
    roots = [path for path in others if path is not None]
    for root in filter(None, (source.images, *roots)):
        if not root.exists():
            raise SldError(f"{root}: no such file or folder")
        if not (root.is_file() or root.is_dir()):
            raise SldError(f"{root}: a device or pipe; expected a file or folder")
    paths: list[Path] = []
    if source.images:
        paths += photos.files_read(source.images, source.list_path, source.with_poses)
    paths += [path for root in roots for path in _files(root)]
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def _files(root: Path) -> list[Path]:
    """All files of a folder, or the file itself."""
    return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]


def settings_used(source: Source, frames: FramesConfig, bag: BagConfig) -> dict[str, Any]:
    """The settings that change what is read from such a source, by group."""
    used = asdict(frames)
    if source.bag is not None:
        del used["jpeg_quality"]  # a bag has its own
        return {"frames": used, "bag": asdict(bag)}
    if not source.videos:
        del used["fps"]
    return {"frames": used}


def teaching_frames(
    source: Source,
    folder: Path,
    bag_config: BagConfig = BagConfig(),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Frame]:
    """Frames with poses and calibrated cameras, of a bag or a COLMAP model, kept in `folder`.

    Returns at once when `folder` holds the frames of this source and these settings. Damaged images
    are named in a warning and left out. SldError when calibration or poses are missing, or `folder`
    holds files of others."""
    folder, config = Path(folder), FramesConfig()
    used = settings_used(source, config, bag_config)
    key = stages.key_of(fingerprint(source), used, source.metres_per_unit)

    def make(partial: Path) -> dict[str, Any]:
        images = partial / IMAGES
        shutil.rmtree(images, ignore_errors=True)  # of a run that was killed
        if source.bag is not None:
            from_bag(source.bag, images, config, bag_config, progress, posed=True)
        else:
            scale = source.metres_per_unit
            from_colmap(source.model, source.images, images, config, progress, scale)
        return {}

    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in found if name not in (IMAGES, stages.RECORD)]
    if foreign or (found and stages.RECORD not in found):
        raise SldError(
            f"{folder}: holds files that sld did not write, such as {(foreign or found)[0]}; "
            "choose an empty folder"
        )
    stages.run(folder, key, make)
    try:
        frame_set = read_frame_set(folder / IMAGES)
    except SldError as error:
        log.warning("%s: the frames are extracted again", error)
        stages.invalidate(folder)
        stages.run(folder, key, make)
        frame_set = read_frame_set(folder / IMAGES)
    _warn_of_rejections(frame_set)
    return list(frame_set.frames)


def _warn_of_rejections(frame_set: FrameSet) -> None:
    counts = count_reasons(frame_set.rejected)
    if not counts:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    log.warning("%d images left out: %s", len(frame_set.rejected), kinds)
    for source, reason in list(frame_set.rejected.items())[:TOLD]:
        log.warning("left out: %s: %s", source, reason)


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
    posed: bool = False,
) -> FrameSet:
    """Keyframes of a rosbag2 recording with the poses of TF or odometry at their stamps, and
    registered depth where there is.

    Where most images have poses they are chosen by motion, else by time; without any, or without
    CameraInfo, the frame set says so. `posed`: frames must have poses and a calibrated camera. A
    bag that ends early gives what it holds. `folder` must be empty."""
    drive = bag_frames.survey(Path(bag), bag_config, posed, progress)
    found = bag_frames.candidates(drive, config, bag_config, posed, progress)
    config = replace(config, jpeg_quality=bag_config.jpeg_quality)
    frames, rejected = _collect(found, Path(folder), config, str(bag))
    frames = bag_frames.with_depth(drive, frames, Path(folder), bag_config, progress)
    calibrated, world = drive.calibration is not None, drive.world_frame
    return _finished(Path(folder), FrameSet(frames, calibrated, world, bool(world), rejected))


def from_colmap(
    model: Path,
    images: Path,
    folder: Path,
    config: FramesConfig = FramesConfig(),
    progress: Callable[[Progress], None] = lambda progress: None,
    metres_per_unit: float | None = None,
) -> FrameSet:
    """The registered images of a COLMAP model (a folder of cameras and images, binary or text),
    undistorted, with its poses; `images` is the folder that their names are relative to. Its points
    are not used. Without `metres_per_unit` the poses stay in units of the model, and depth images
    are left out. `folder` must be empty."""
    found = colmap_frames.candidates(Path(model), Path(images), metres_per_unit, progress)
    frames, rejected = _collect(found, Path(folder), config, str(model))
    return _finished(Path(folder), FrameSet(frames, True, "given", rejected=rejected))


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
    log.info("%d frames, %d left out", len(frame_set.frames), len(frame_set.rejected))
    return frame_set


def _write(item: Candidate, folder: Path, number: int, quality: int) -> Frame:
    name = f"image-{number:06d}"
    image_path, depth_path = folder / f"{name}.color.jpg", folder / f"{name}.depth.png"
    if item.jpeg is None:
        write_jpeg(image_path, item.image_HW3, quality)
    else:
        write_bytes(image_path, item.jpeg)
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
    return replace(frame, name=name, image_path=image_path, depth_path=depth_path)
