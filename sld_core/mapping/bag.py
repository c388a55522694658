"""A recorded drive (rosbag2, mcap or sqlite3) -> undistorted keyframes with poses, as a folder of frames."""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_typestore

from sld_core.geometry import make_transform, pose_error, rotation_from_quaternion
from sld_core.mapping.frames import read_frames
from sld_core.mapping.mcap import Message, scan
from sld_core.pixels import rgb_from_encoded, rgb_from_raw
from sld_core.tf_tree import TransformError, TransformTree
from sld_core.types import Frame, Progress, SldError
from sld_core.undistort import Undistortion, undistortion

log = logging.getLogger(__name__)

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, TF, ODOMETRY = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"


@dataclass(frozen=True)
class BagConfig:
    """Which topics and frames of a bag to use, and which of its images to keep."""

    image_topic: str = ""  # empty: the only image topic of the bag
    camera_info_topic: str = ""  # empty: the one beside the image topic
    camera_frame: str = ""  # optical frame; empty: the frame_id of the images
    world_frame: str = ""  # empty: the highest frame (map before odom) whose pose is known for most images
    rectified: bool = False  # the images are rectified already (image_rect): use P and no distortion
    min_translation_m: float = 0.05  # keep an image when it moved this far from the last one kept,
    min_rotation_deg: float = 5.0  # or turned this much,
    max_interval_s: float = 2.0  # or this much time passed
    max_frames: int = 300  # the three thresholds grow together until no more are kept
    jpeg_quality: int = 95


def extract_frames(bag: Path, output: Path, config: BagConfig, progress: Callable[[Progress], None]) -> list[Frame]:
    """Keyframes of a bag as a folder of frames (see mapping.frames), with poses from TF or odometry at the image stamps.

    Returns at once when `output` holds the frames of this bag and configuration. A bag that ends early gives what it
    holds. Raises SldError when images, calibration or poses are missing."""
    bag, output = Path(bag), Path(output)
    fingerprint = _fingerprint(bag, config)
    done = output / "bag.json"
    if not done.exists() or json.loads(done.read_text())["fingerprint"] != fingerprint:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        stamps = _write_frames(bag, output, config, progress)
        done.write_text(json.dumps({"fingerprint": fingerprint, "stamps_ns": stamps}))
    stamps = json.loads(done.read_text())["stamps_ns"]
    frames = read_frames(output)
    return [dataclasses.replace(f, stamp_ns=stamp, session=bag.name) for f, stamp in zip(frames, stamps, strict=True)]


def _write_frames(bag: Path, output: Path, config: BagConfig, progress: Callable[[Progress], None]) -> list[int]:
    """Both passes over the bag; returns the stamps of the frames written, in order."""
    index = _read_index(bag, progress)
    image_topic = _choose_image_topic(bag, index, config)
    undistort = _calibration(bag, index, image_topic, config)
    images = index.images[image_topic]
    poses = _camera_poses(bag, index.tree, config.camera_frame or images.frame_id, sorted(images.stamps_ns), config.world_frame)
    keep = select_keyframes(poses, config)
    log.info("%s: %d of %d images kept, %d without a pose", bag.name, len(keep), len(images.stamps_ns), len(images.stamps_ns) - len(poses))
    K = undistort.camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]  # the folder's file has pixel centres at integers
    np.savetxt(output / "camera-intrinsics.txt", K)
    names = {stamp: f"frame-{i:06d}" for i, stamp in enumerate(keep)}
    written = 0
    for message in messages(bag, (IMAGE, COMPRESSED)):
        name = names.get(_stamp_in_header(message)) if message.topic == image_topic else None
        if name is None:
            continue
        rgb = undistort(_decode(message))
        cv2.imwrite(str(output / f"{name}.color.jpg"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])
        np.savetxt(output / f"{name}.pose.txt", poses[_stamp_in_header(message)])
        written += 1
        progress(Progress("extracting frames", written / len(keep)))
    return keep


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


def messages(bag: Path, types: tuple[str, ...]) -> Iterator[Message]:
    """Messages of these types in a bag folder or file, in the order of the file; one warning where it ends early."""
    files = [bag] if bag.suffix == ".mcap" else sorted(bag.glob("*.mcap"))
    if files and not _compressed_by_rosbag2(bag):
        for file in files:
            yield from (message for message in scan(file) if message.type in types)
        return
    parts = [bag] if bag.is_file() or (bag / "metadata.yaml").exists() else sorted(bag.glob("*.db3"))
    if not parts:
        raise SldError(f"{bag}: no rosbag2 recording (expected a folder with .mcap or .db3 files)")
    try:
        for part in parts:
            with Reader(part) as reader:
                wanted = [c for c in reader.connections if c.msgtype in types]
                for connection, time_ns, data in reader.messages(wanted) if wanted else ():
                    yield Message(connection.topic, connection.msgtype, time_ns, bytes(data))
    except (ReaderError, OSError) as error:
        raise SldError(f"{bag}: cannot be read ({error})") from error


def _compressed_by_rosbag2(bag: Path) -> bool:
    """Whether files or messages are compressed as a whole (chunks inside mcap are no matter)."""
    metadata = bag / "metadata.yaml"
    return metadata.exists() and re.search(r"compression_mode:\s*['\"]?(file|message)", metadata.read_text(), re.I) is not None


@dataclass
class _Images:
    """What the first pass learns of an image topic."""

    frame_id: str
    stamps_ns: list[int] = field(default_factory=list)


@dataclass
class _Index:
    """What the first pass over a bag finds."""

    images: dict[str, _Images] = field(default_factory=dict)
    infos: dict[str, object] = field(default_factory=dict)  # topic -> first CameraInfo
    tree: TransformTree = field(default_factory=TransformTree)
    topics: dict[str, str] = field(default_factory=dict)


def _read_index(bag: Path, progress: Callable[[Progress], None]) -> _Index:
    index, odometry = _Index(), []
    total = sum(size for _, size, _ in _files(bag))
    seen = 0
    for i, message in enumerate(messages(bag, (IMAGE, COMPRESSED, CAMERA_INFO, TF, ODOMETRY))):
        index.topics[message.topic] = message.type
        seen += len(message.data)
        if i % 100 == 0:
            progress(Progress("reading the bag", min(1.0, seen / total)))
        if message.type in (IMAGE, COMPRESSED):
            if message.topic not in index.images:
                index.images[message.topic] = _Images(_frame_in_header(message))
            index.images[message.topic].stamps_ns.append(_stamp_in_header(message))
            continue
        content = _store().deserialize_cdr(message.data, message.type)
        if message.type == CAMERA_INFO:
            index.infos.setdefault(message.topic, content)
        elif message.type == TF:
            for t in content.transforms:
                static = message.topic.endswith("tf_static")
                index.tree.insert(_frame(t.header.frame_id), _frame(t.child_frame_id), _stamp(t.header),
                                  _matrix(t.transform.rotation, t.transform.translation), static)
        else:
            odometry.append(content)
    _add_odometry(index.tree, odometry)
    return index


def _add_odometry(tree: TransformTree, odometry: list) -> None:
    """Odometry messages stand in for a TF that the bag lacks."""
    in_tf = {_frame(o.child_frame_id) for o in odometry if tree.moves(_frame(o.child_frame_id))}
    for o in odometry:
        if _frame(o.child_frame_id) not in in_tf:
            pose = o.pose.pose
            tree.insert(_frame(o.header.frame_id), _frame(o.child_frame_id), _stamp(o.header), _matrix(pose.orientation, pose.position))


def _choose_image_topic(bag: Path, index: _Index, config: BagConfig) -> str:
    candidates = [config.image_topic] if config.image_topic else list(index.images)
    if len(candidates) != 1 or candidates[0] not in index.images:
        wanted = f"image topic {config.image_topic!r}" if config.image_topic else "exactly one image topic (choose one with image_topic)"
        raise SldError(f"{bag}: expected {wanted}; the bag has {_list(index.topics)}")
    return candidates[0]


def _calibration(bag: Path, index: _Index, image_topic: str, config: BagConfig) -> Undistortion:
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
    chain = tree.ancestors(_frame(camera))
    moving = [above for i, above in enumerate(chain) if any(tree.moves(frame) for frame in chain[:i])]
    best: dict[int, np.ndarray] = {}
    for frame in [world] if world else reversed(moving):
        poses = {stamp: T for stamp in stamps if (T := _pose(tree, frame, _frame(camera), stamp)) is not None}
        best = max(best, poses, key=len)
        if len(best) > len(stamps) / 2:
            break
    if not best:
        raise SldError(f"{bag}: no pose of the camera frame {camera!r} in {world or 'a frame in which it moves'} at any image stamp; needed is "
                       "TF from odom or map down to the camera, or nav_msgs/Odometry and a static TF; "
                       f"known frames: {', '.join(tree.frames()) or 'none'}; the chain of the camera: {' < '.join(reversed(chain))}")
    return best


def _pose(tree: TransformTree, world: str, camera: str, stamp_ns: int) -> np.ndarray | None:
    try:
        return tree.lookup(world, camera, stamp_ns)
    except TransformError:
        return None


def _decode(message: Message) -> np.ndarray:
    content = _store().deserialize_cdr(message.data, message.type)
    if message.type == COMPRESSED:
        return rgb_from_encoded(content.data)
    return rgb_from_raw(content.data, content.encoding, content.width, content.height, content.step)


@functools.cache
def _store():
    """The standard messages; those used here are the same in every distribution since Humble."""
    return get_typestore(Stores.ROS2_JAZZY)


def _stamp_in_header(message: Message) -> int:
    """The stamp of a message that starts with a std_msgs/Header, without decoding the rest (megabytes, in an image)."""
    order = "little" if message.data[1] & 1 else "big"
    return int.from_bytes(message.data[4:8], order, signed=True) * 10**9 + int.from_bytes(message.data[8:12], order)


def _frame_in_header(message: Message) -> str:
    order = "little" if message.data[1] & 1 else "big"
    length = int.from_bytes(message.data[12:16], order)
    return _frame(message.data[16:16 + length - 1].decode())


def _stamp(header) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def _frame(name: str) -> str:
    return name.removeprefix("/")


def _matrix(rotation, translation) -> np.ndarray:
    R = rotation_from_quaternion([rotation.x, rotation.y, rotation.z, rotation.w])
    return make_transform(R, np.array([translation.x, translation.y, translation.z]))


def _list(topics: dict[str, str]) -> str:
    return ", ".join(f"{topic} ({type_name})" for topic, type_name in sorted(topics.items())) or "no topic of use"


def _files(bag: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the bag's files."""
    paths = sorted(bag.iterdir()) if bag.is_dir() else [bag]
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]


def _fingerprint(bag: Path, config: BagConfig) -> str:
    if not bag.exists():
        raise SldError(f"{bag}: no such recording")
    return hashlib.sha256(json.dumps([_files(bag), dataclasses.asdict(config)]).encode()).hexdigest()
