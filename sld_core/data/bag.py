"""A recorded drive (rosbag2, mcap or sqlite3): which of its images, with which camera and poses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sld_core.camera.calibration import Calibration
from sld_core.camera.encodings import DEPTHS
from sld_core.config.scene import BagConfig
from sld_core.data.bag_reader import IMAGES, BagIndex, messages, read_index, stamp_of
from sld_core.data.mcap_reader import Message
from sld_core.data.tf_tree import TransformError, TransformReason, TransformTree, frame_name
from sld_core.geometry import pose_error
from sld_core.spread import spread
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)

# of the thresholds of keyframes: the usual ones become half a turn, 50 m and half an hour
MOST_GROWTH = 1000.0


@dataclass(frozen=True)
class Drive:
    """What a first pass over a bag finds: the images of `topic` by their stamps (ascending), the
    calibration of the camera (None: not in the bag), and stamp -> T_world_camera in `world_frame`
    for the images whose pose is known."""

    bag: Path
    index: BagIndex
    topic: str
    camera_frame: str
    stamps: list[int]
    calibration: Calibration | None
    world_frame: str
    poses: dict[int, np.ndarray]


def survey(bag: Path, config: BagConfig, progress: Callable[[Progress], None]) -> Drive:
    """Read all of a bag but its pixels."""
    if not bag.exists():
        raise SldError(f"{bag}: no such recording")
    index = read_index(bag, progress)
    topic = _choose_image_topic(bag, index, config)
    images = index.images[topic]
    camera = frame_name(config.camera_frame or images.frame_id)
    stamps = sorted(set(images.stamps_ns))
    world, poses = _camera_poses(bag, index.tree, camera, stamps, config.world_frame)
    calibration = _calibration(bag, index, topic, config)
    return Drive(bag, index, topic, camera, stamps, calibration, world, poses)


def require_calibration(drive: Drive, config: BagConfig) -> Calibration:
    """SldError where the bag has no calibration that can be used."""
    if drive.calibration is None:
        raise SldError(
            f"{drive.bag}: no camera calibration on "
            f"{_info_topic(drive.index, drive.topic, config)}; the bag has "
            f"{list_topics(drive.index)}"
        )
    drive.calibration.undistortion(drive.calibration.width, drive.calibration.height)
    return drive.calibration


def require_poses(drive: Drive, config: BagConfig) -> None:
    """SldError where no image has a pose."""
    if not drive.poses:
        raise SldError(f"{drive.bag}: {no_pose(drive, config)}")


def wanted_messages(bag: Path, topic: str, stamps: Iterable[int]) -> Iterator[tuple[int, Message]]:
    """(stamp, message) of each of these stamps of an image topic, once, in the order of the
    file."""
    left = set(stamps)
    if not left:
        return
    for message in messages(bag, IMAGES):
        stamp = stamp_of(message)
        if message.topic == topic and stamp in left:
            left.remove(stamp)
            yield stamp, message
            if not left:
                return


def select_keyframes(poses: dict[int, np.ndarray], config: BagConfig) -> list[int]:
    """Stamps of the images to keep; `poses` maps stamps (ns, ascending) to T_world_camera."""
    scale, keep = 1.0, _far_apart(poses, config, 1.0)
    grows = min(config.min_translation_m, config.min_rotation_deg, config.max_interval_s) > 0
    while grows and len(keep) > config.max_frames and scale < MOST_GROWTH:
        scale *= 1.1
        keep = _far_apart(poses, config, scale)
    return spread(keep, config.max_frames)


def _far_apart(poses: dict[int, np.ndarray], config: BagConfig, scale: float) -> list[int]:
    """Stamps at which the camera has moved, turned or waited enough since the last one kept;
    `scale` multiplies the thresholds."""
    keep: list[int] = []
    for stamp, T in poses.items():
        if keep:
            metres, radians = pose_error(poses[keep[-1]], T)
            if (
                metres < scale * config.min_translation_m
                and np.degrees(radians) < scale * config.min_rotation_deg
                and stamp - keep[-1] < scale * config.max_interval_s * 1e9
            ):
                continue
        keep.append(stamp)
    return keep


def _choose_image_topic(bag: Path, index: BagIndex, config: BagConfig) -> str:
    colour = [
        topic
        for topic, images in index.images.items()
        if images.encoding not in DEPTHS and "compressedDepth" not in images.encoding
    ]
    wanted = "exactly one image topic (choose one with image_topic)"
    if config.image_topic:
        colour, wanted = [config.image_topic], f"image topic {config.image_topic!r}"
    if len(colour) != 1 or colour[0] not in index.images:
        raise SldError(f"{bag}: expected {wanted}; the bag has {list_topics(index)}")
    return colour[0]


def _calibration(
    bag: Path, index: BagIndex, image_topic: str, config: BagConfig
) -> Calibration | None:
    topic = _info_topic(index, image_topic, config)
    if topic not in index.infos:
        if config.camera_info_topic:
            raise SldError(
                f"{bag}: no camera calibration on {topic}; the bag has {list_topics(index)}"
            )
        return None
    info, source = index.infos[topic], "the camera calibration"
    size = info.width, info.height
    if config.rectified:
        return Calibration(*size, info.p.reshape(3, 4)[:, :3], source=source)
    return Calibration(*size, info.k.reshape(3, 3), info.d, info.distortion_model, source)


def _info_topic(index: BagIndex, image_topic: str, config: BagConfig) -> str:
    """As given, else beside the images, else the only one of the bag."""
    if config.camera_info_topic:
        return config.camera_info_topic
    beside = image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
    if beside not in index.infos and len(index.infos) == 1:
        return next(iter(index.infos))
    return beside


def _camera_poses(
    bag: Path, tree: TransformTree, camera: str, stamps: list[int], world: str
) -> tuple[str, dict[int, np.ndarray]]:
    """The highest frame in which the poses of most images are known, and stamp -> T_world_camera;
    or "" and none."""
    chain = tree.ancestors(camera)
    moving = [
        above for i, above in enumerate(chain) if any(tree.moves(frame) for frame in chain[:i])
    ]
    best: dict[int, np.ndarray] = {}
    best_frame, gaps = "", []
    for frame in [frame_name(world)] if world else reversed(moving):
        poses, in_gap = _poses(tree, frame, camera, stamps)
        if len(poses) > len(best) or not best:
            best_frame, best, gaps = frame, poses, in_gap
        if len(best) > len(stamps) / 2:
            break
    if gaps:
        log.warning(
            "%s: %d of %d images left out: odometry or TF has gaps; the first: %s",
            bag.name,
            len(gaps),
            len(stamps),
            gaps[0],
        )
    return (best_frame, best) if best else ("", {})


def no_pose(drive: Drive, config: BagConfig) -> str:
    """Why no image has a pose, and what would help."""
    tree = drive.index.tree
    chain = " < ".join(reversed(tree.ancestors(drive.camera_frame)))
    world = config.world_frame or "a frame in which it moves"
    return (
        f"no pose of the camera frame {drive.camera_frame!r} in {world} at any image stamp; "
        "needed is TF from odom or map down to the camera, or nav_msgs/Odometry and a static TF; "
        f"known frames: {', '.join(tree.frames()) or 'none'}; the chain of the camera: {chain}"
    )


def _poses(
    tree: TransformTree, world: str, camera: str, stamps: list[int]
) -> tuple[dict[int, np.ndarray], list[TransformError]]:
    """Stamp -> T_world_camera where it is known, and the errors of stamps in a gap."""
    poses: dict[int, np.ndarray] = {}
    gaps: list[TransformError] = []
    for stamp in stamps:
        try:
            poses[stamp] = tree.lookup(world, camera, stamp)
        except TransformError as error:
            if error.reason is TransformReason.GAP:
                gaps.append(error)
    return poses, gaps


def list_topics(index: BagIndex) -> str:
    return (
        ", ".join(f"{topic} ({type_name})" for topic, type_name in sorted(index.topics.items()))
        or "no topic of use"
    )
