"""A recorded drive (rosbag2, mcap or sqlite3) -> undistorted keyframes with poses, as a folder of frames."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from sld_core.config import BagConfig
from sld_core.geometry import pose_error
from sld_core.mapping.bag_reader import IMAGES, BagIndex, bag_files, decode_image, frame_name, messages, read_index, stamp_of
from sld_core.mapping.frames import read_frames
from sld_core.tf_tree import TransformError, TransformReason, TransformTree
from sld_core.types import Frame, Progress, SldError
from sld_core.undistort import Undistortion, undistortion

log = logging.getLogger(__name__)


def extract_frames(bag: Path, output: Path, config: BagConfig = BagConfig(),
                   progress: Callable[[Progress], None] = lambda progress: None) -> list[Frame]:
    """Keyframes of a bag as a folder of frames (see mapping.frames), with poses from TF or odometry at the image stamps.

    Returns at once when `output` holds the frames of this bag and configuration. A bag that ends early gives what it
    holds. Raises SldError when images, calibration or poses are missing."""
    if config.max_frames < 1:
        raise SldError(f"bag.max_frames = {config.max_frames}: expected at least 1")
    bag, output = Path(bag), Path(output)
    fingerprint = _fingerprint(bag, config)
    record = output / "bag.json"
    stamps = _stamps_of_record(record, fingerprint)
    if stamps is None:
        _empty_folder(output, record)
        stamps = _write_frames(bag, output, config, progress)
        record.write_text(json.dumps({"complete": fingerprint, "stamps_ns": stamps}))
    frames = read_frames(output)
    return [dataclasses.replace(f, stamp_ns=stamp, session=bag.name) for f, stamp in zip(frames, stamps, strict=True)]


def _stamps_of_record(record: Path, fingerprint: str) -> list[int] | None:
    """Stamps of an extraction that is complete; None where there is none, or its record was cut off by a kill."""
    try:
        content = json.loads(record.read_text())
        return content["stamps_ns"] if content["complete"] == fingerprint else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _empty_folder(output: Path, record: Path) -> None:
    """A folder that holds nothing but the record; only what an earlier run left is removed."""
    if output.exists() and any(output.iterdir()) and not record.exists():
        raise SldError(f"{output}: holds files that are not from a bag; choose an empty folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    record.write_text("{}")


def _write_frames(bag: Path, output: Path, config: BagConfig, progress: Callable[[Progress], None]) -> list[int]:
    """Both passes over the bag; returns the stamps of the frames written, in order."""
    index = read_index(bag, progress)
    image_topic = _choose_image_topic(bag, index, config)
    undistort = _calibration(bag, index, image_topic, config)
    images = index.images[image_topic]
    poses = _camera_poses(bag, index.tree, config.camera_frame or images.frame_id, sorted(images.stamps_ns), config.world_frame)
    keep = select_keyframes(poses, config)
    log.info("%s: %d of %d images kept, %d without a pose", bag.name, len(keep), len(images.stamps_ns), len(images.stamps_ns) - len(poses))
    K = undistort.camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]  # the folder's file has pixel centres at integers
    np.savetxt(output / "camera-intrinsics.txt", K)
    left = {stamp: f"frame-{i:06d}" for i, stamp in enumerate(keep)}
    for message in messages(bag, IMAGES):
        name = left.pop(stamp_of(message), None) if message.topic == image_topic else None
        if name is None:
            continue
        np.savetxt(output / f"{name}.pose.txt", poses[stamp_of(message)])
        _write_jpeg(output / f"{name}.color.jpg", undistort(decode_image(message)), config.jpeg_quality)
        progress(Progress("extracting frames", 1 - len(left) / len(keep)))
        if not left:
            break
    return keep


def _write_jpeg(path: Path, rgb_HW3: np.ndarray, quality: int) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]):
        raise SldError(f"{path}: cannot be written; is the disk full?")


def select_keyframes(poses: dict[int, np.ndarray], config: BagConfig) -> list[int]:
    """Stamps of the images to keep; `poses` maps stamps (ns, ascending) to T_world_camera."""
    scale = 1.0
    while len(keep := _far_apart(poses, config, scale)) > config.max_frames:
        scale *= 1.1
    return keep


def _far_apart(poses: dict[int, np.ndarray], config: BagConfig, scale: float) -> list[int]:
    keep: list[int] = []
    for stamp, T in poses.items():
        if keep:
            metres, radians = pose_error(poses[keep[-1]], T)
            if (metres < scale * config.min_translation_m and np.degrees(radians) < scale * config.min_rotation_deg
                    and stamp - keep[-1] < scale * config.max_interval_s * 1e9):
                continue
        keep.append(stamp)
    return keep


def _choose_image_topic(bag: Path, index: BagIndex, config: BagConfig) -> str:
    candidates = [config.image_topic] if config.image_topic else list(index.images)
    if len(candidates) != 1 or candidates[0] not in index.images:
        wanted = f"image topic {config.image_topic!r}" if config.image_topic else "exactly one image topic (choose one with image_topic)"
        raise SldError(f"{bag}: expected {wanted}; the bag has {_list(index.topics)}")
    return candidates[0]


def _calibration(bag: Path, index: BagIndex, image_topic: str, config: BagConfig) -> Undistortion:
    beside = image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
    topic = config.camera_info_topic or (beside if beside in index.infos or len(index.infos) != 1 else next(iter(index.infos)))
    if topic not in index.infos:
        raise SldError(f"{bag}: no camera calibration on {topic}; the bag has {_list(index.topics)}")
    info = index.infos[topic]
    if config.rectified:
        return undistortion(info.p.reshape(3, 4)[:, :3], np.zeros(0), "", info.width, info.height)
    return undistortion(info.k, info.d, info.distortion_model, info.width, info.height)


def _camera_poses(bag: Path, tree: TransformTree, camera: str, stamps: list[int], world: str) -> dict[int, np.ndarray]:
    """Stamp -> T_world_camera where it is known, in the highest frame that knows most of them."""
    chain = tree.ancestors(frame_name(camera))
    moving = [above for i, above in enumerate(chain) if any(tree.moves(frame) for frame in chain[:i])]
    best: dict[int, np.ndarray] = {}
    gaps: list[TransformError] = []
    for frame in [world] if world else reversed(moving):
        poses, in_gap = _poses(tree, frame, frame_name(camera), stamps)
        if len(poses) > len(best) or not best:
            best, gaps = poses, in_gap
        if len(best) > len(stamps) / 2:
            break
    if gaps:
        log.warning("%s: %d of %d images left out: odometry or TF has gaps; the first: %s", bag.name, len(gaps), len(stamps), gaps[0])
    if not best:
        raise SldError(f"{bag}: no pose of the camera frame {camera!r} in {world or 'a frame in which it moves'} at any image stamp; needed is "
                       "TF from odom or map down to the camera, or nav_msgs/Odometry and a static TF; "
                       f"known frames: {', '.join(tree.frames()) or 'none'}; the chain of the camera: {' < '.join(reversed(chain))}")
    return best


def _poses(tree: TransformTree, world: str, camera: str, stamps: list[int]) -> tuple[dict[int, np.ndarray], list[TransformError]]:
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


def _list(topics: dict[str, str]) -> str:
    return ", ".join(f"{topic} ({type_name})" for topic, type_name in sorted(topics.items())) or "no topic of use"


def _fingerprint(bag: Path, config: BagConfig) -> str:
    if not bag.exists():
        raise SldError(f"{bag}: no such recording")
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in bag_files(bag)]
    return hashlib.sha256(json.dumps([files, dataclasses.asdict(config)]).encode()).hexdigest()
