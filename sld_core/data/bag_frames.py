"""Candidates for frames from a bag, with or without poses and calibration, and the depth images
beside them."""

from __future__ import annotations

import bisect
import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from sld_core.camera.calibration import Lenses
from sld_core.camera.encodings import DEPTHS
from sld_core.config.mapping import FramesConfig
from sld_core.config.scene import BagConfig
from sld_core.data import bag as bags
from sld_core.data.bag import Drive, list_topics, select_keyframes, wanted_messages
from sld_core.data.bag_reader import decode_depth, decode_image, encoded_jpeg
from sld_core.data.frame_selection import Candidate, Rejection
from sld_core.data.image_files import same_shape, write_depth
from sld_core.data.session_names import session_labels
from sld_core.types import Frame, Progress, SldError

log = logging.getLogger(__name__)

MOST = 0.9  # images with poses from which frames are chosen by motion, and the others left out
DEPTH_TOLERANCE_NS = 50_000_000


def survey(
    bag: Path, config: BagConfig, posed: bool, progress: Callable[[Progress], None]
) -> Drive:
    """A first pass. Where frames must be `posed`, SldError if poses or the calibration are
    missing; elsewhere a camera that was never calibrated (K all zero) counts as unknown."""
    drive = bags.survey(bag, config, progress)
    if posed:
        bags.require_calibration(drive, config)
    if posed or config.world_frame:
        bags.require_poses(drive, config)
    if drive.calibration is not None and not drive.calibration.K.any():
        log.warning(
            "%s: the camera is not calibrated (K is all zero): its focal length will be estimated",
            bag,
        )
        drive = dataclasses.replace(drive, calibration=None)
    if not drive.poses:
        log.warning("%s: images have no poses: %s", bag, bags.no_pose(drive, config))
    return drive


def candidates(
    drive: Drive,
    config: FramesConfig,
    bag_config: BagConfig,
    posed: bool,
    progress: Callable[[Progress], None],
) -> Iterator[Candidate | Rejection]:
    """Images chosen by motion where most have poses, or frames must be `posed` (those without are
    left out), else by time."""
    for what, text in drive.index.damage.items():
        yield Rejection(what, f"damaged: {text}")
    by_motion = posed or len(drive.poses) >= MOST * len(drive.stamps)
    if by_motion:
        keep = select_keyframes(drive.poses, bag_config)
        for stamp in drive.stamps:
            if stamp not in drive.poses:
                reason = "no pose: odometry or TF does not cover it"
                yield Rejection(_source(drive, stamp), reason)
    else:
        keep = _by_time(drive.stamps, config.fps, bag_config.max_frames)
    log.info(
        "%s: %d of %d images chosen by %s, %d with a pose",
        drive.bag,
        len(keep),
        len(drive.stamps),
        "motion" if by_motion else "time",
        sum(stamp in drive.poses for stamp in keep),
    )
    yield from _images(drive, keep, progress)


def _images(
    drive: Drive, keep: list[int], progress: Callable[[Progress], None]
) -> Iterator[Candidate | Rejection]:
    """The images of these stamps; damaged ones become Rejections."""
    name = _bag_name(drive)
    session = session_labels([name])[name]
    lenses = Lenses(drive.calibration)
    for i, (stamp, message) in enumerate(wanted_messages(drive.bag, drive.topic, keep)):
        try:
            image = decode_image(message)
            lens = lenses(image.shape[1], image.shape[0])
            yield Candidate(
                lens(image),
                lens.camera,
                session,
                _source(drive, stamp),
                stamp,
                drive.poses.get(stamp),
                encoded_jpeg(message) if lens.maps is None else None,
            )
        except SldError as error:
            kind = "other size" if str(error).startswith("image is") else "damaged"
            yield Rejection(_source(drive, stamp), f"{kind}: {error}")
        progress(Progress("extracting frames", (i + 1) / len(keep)))


def _bag_name(drive: Drive) -> str:
    return drive.bag.stem if drive.bag.is_file() else drive.bag.name


def _source(drive: Drive, stamp: int) -> str:
    return f"{_bag_name(drive)} {drive.topic} at {stamp / 1e9:.3f} s"


def _by_time(stamps: list[int], fps: float, max_frames: int) -> list[int]:
    """At most `fps` a second, and at most `max_frames` over all."""
    span_s = (stamps[-1] - stamps[0]) / 1e9
    fps = min(fps, (max_frames - 1) / span_s) if span_s > 0 else fps
    keep, slot = [], -1
    for stamp in stamps:
        now = math.floor((stamp - stamps[0]) / 1e9 * fps + 1e-3)
        if now > slot:
            keep.append(stamp)
            slot = now
    return keep[:max_frames]


def with_depth(
    drive: Drive,
    frames: tuple[Frame, ...],
    folder: Path,
    config: BagConfig,
    progress: Callable[[Progress], None],
) -> tuple[Frame, ...]:
    """Frames with the depth image nearest in time, within 50 ms, written to `folder`. It must be
    registered to the camera: same view, same distortion, any resolution."""
    topic = _depth_topic(drive, config)
    if not topic:
        return frames
    stamps = sorted(set(drive.index.images[topic].stamps_ns))
    frames_of: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames:
        frames_of[_nearest(stamps, frame.stamp_ns)].append(frame)
    lenses, paths = Lenses(drive.calibration), {}
    wanted = {
        stamp: [f for f in near if abs(f.stamp_ns - stamp) <= DEPTH_TOLERANCE_NS]
        for stamp, near in frames_of.items()
    }
    for i, (stamp, message) in enumerate(
        wanted_messages(drive.bag, topic, [stamp for stamp, near in wanted.items() if near])
    ):
        try:
            depth = decode_depth(message)
        except SldError as error:
            log.warning("%s %s at %.3f s: left out: %s", drive.bag, topic, stamp / 1e9, error)
            continue
        for frame in wanted[stamp]:
            paths[frame.name] = folder / f"{frame.name}.depth.png"
            write_depth(
                paths[frame.name], lenses(frame.camera.width, frame.camera.height).nearest(depth)
            )
        progress(Progress("extracting depth", (i + 1) / len(wanted)))
    log.info(
        "%s: %d of %d frames have depth from %s, taken to be registered to the camera",
        drive.bag,
        len(paths),
        len(frames),
        topic,
    )
    return tuple(dataclasses.replace(frame, depth_path=paths.get(frame.name)) for frame in frames)


def _depth_topic(drive: Drive, config: BagConfig) -> str:
    images = drive.index.images
    if config.depth_topic:
        if config.depth_topic not in images or images[config.depth_topic].encoding not in DEPTHS:
            raise SldError(
                f"{drive.bag}: expected depth images (16UC1 or 32FC1) on {config.depth_topic}; "
                f"the bag has {list_topics(drive.index)}"
            )
        return config.depth_topic
    size = (
        (drive.calibration.width, drive.calibration.height)
        if drive.calibration
        else images[drive.topic].size
    )
    found = [
        topic
        for topic, depth in images.items()
        if depth.encoding in ("16UC1", "32FC1") and same_shape(depth.size, size)
    ]
    if len(found) > 1:
        log.warning(
            "%s: depth on %s; none is used, choose one with bag.depth_topic",
            drive.bag,
            ", ".join(found),
        )
    return found[0] if len(found) == 1 else ""


def _nearest(stamps: list[int], stamp: int) -> int:
    i = bisect.bisect_left(stamps, stamp)
    return min(stamps[max(0, i - 1) : i + 1], key=lambda other: abs(other - stamp))
