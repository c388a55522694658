"""Reading rosbag2 recordings: their messages, and what a first pass finds in them."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from sld_core.camera.encodings import (
    depth_mm_from_raw,
    encoded_size,
    rgb_from_encoded,
    rgb_from_raw,
)
from sld_core.data.mcap_reader import Message, scan, warn
from sld_core.data.session_names import natural
from sld_core.data.tf_tree import TransformTree, frame_name
from sld_core.geometry import make_transform, rotation_from_quaternion
from sld_core.types import Progress, SldError

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, TF, ODOMETRY = (
    "sensor_msgs/msg/CameraInfo",
    "tf2_msgs/msg/TFMessage",
    "nav_msgs/msg/Odometry",
)
IMAGES = IMAGE, COMPRESSED


@dataclass
class Images:
    """A topic of images; encoding and size are those of the first."""

    frame_id: str
    encoding: str = ""  # of sensor_msgs/Image, or the format of sensor_msgs/CompressedImage
    size: tuple[int, int] = 0, 0  # width, height
    stamps_ns: list[int] = field(default_factory=list)


@dataclass
class BagIndex:
    """All of a bag but its pixels: image stamps, the first CameraInfo of each topic, poses of the
    frames over time."""

    images: dict[str, Images] = field(default_factory=dict)
    infos: dict[str, object] = field(default_factory=dict)
    tree: TransformTree = field(default_factory=TransformTree)
    topics: dict[str, str] = field(default_factory=dict)  # name -> type
    # file, topic or transform -> what is wrong with the first of its messages that is damaged
    damage: dict[str, str] = field(default_factory=dict)


def messages(
    bag: Path, types: tuple[str, ...], on_damage: Callable[[Path, str], None] = warn
) -> Iterator[Message]:
    """Messages of these types in a bag folder or file, in the order of the file. `on_damage` is
    called with a file that ends early, and what is wrong with it."""
    files = _parts(bag, ".mcap")
    if files and not _compressed_by_rosbag2(bag):
        for file in files:
            yield from (message for message in scan(file, on_damage) if message.type in types)
        return
    if bag.is_file() and bag.suffix not in (".mcap", ".db3"):
        raise SldError(f"{bag}: no bag; expected a rosbag2 folder, or an .mcap or .db3 file")
    parts = [bag] if bag.is_file() or (bag / "metadata.yaml").exists() else _parts(bag, ".db3")
    if not parts:
        raise SldError(f"{bag}: no rosbag2 recording (expected a folder with .mcap or .db3 files)")
    read = 0
    try:
        for part in parts:
            with Reader(part) as reader:
                wanted = [c for c in reader.connections if c.msgtype in types]
                for connection, time_ns, data in reader.messages(wanted) if wanted else ():
                    read += 1
                    yield Message(connection.topic, connection.msgtype, time_ns, bytes(data))
    except Exception as error:  # of rosbags, yaml or sqlite3, on damaged files
        if not read:
            raise SldError(f"{bag}: cannot be read ({error})") from error
        on_damage(
            bag, f"cut off or damaged after {read} messages ({error}): only the part before is used"
        )


def _parts(bag: Path, suffix: str) -> list[Path]:
    """The files of this kind in the order in which they were recorded: a recorder that splits a bag
    numbers them."""
    if bag.is_file():
        return [bag] if bag.suffix == suffix else []
    for path in bag.glob("*"):
        # to open a pipe is to wait for its writer
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise SldError(f"{path}: a device or pipe; expected a bag of files")
    return sorted(
        (path for path in bag.glob(f"*{suffix}") if path.is_file()),
        key=lambda path: natural(path.name),
    )


def _compressed_by_rosbag2(bag: Path) -> bool:
    """Whether files or messages are compressed as a whole (compressed chunks inside mcap do not
    count)."""
    metadata = bag / "metadata.yaml"
    text = metadata.read_text(errors="replace") if metadata.is_file() else ""
    return re.search(r"compression_mode:\s*['\"]?(file|message)", text, re.I) is not None


def read_index(bag: Path, progress: Callable[[Progress], None]) -> BagIndex:
    """One pass over the bag. Odometry messages stand in for a TF that the bag lacks."""
    index, odometry, seen = BagIndex(), [], 0
    total = sum(file.stat().st_size for file in bag_files(bag))

    def ends_early(path: Path, what: str) -> None:
        index.damage.setdefault(path.name, f"{path} is {what}")

    for i, message in enumerate(messages(bag, (*IMAGES, CAMERA_INFO, TF, ODOMETRY), ends_early)):
        index.topics[message.topic] = message.type
        seen += len(message.data)
        if i % 100 == 0:
            progress(Progress("reading the bag", min(1.0, seen / total)))
        try:
            if message.type in IMAGES:
                _add_image(index, message)
            elif message.type == CAMERA_INFO:
                index.infos.setdefault(message.topic, _content(message))
            elif message.type == TF:
                _add_transforms(index, message)
            else:
                odometry.append(_content(message))
        except SldError as error:
            text = f"{error}; ignored, as all such messages of this topic"
            index.damage.setdefault(message.topic, text)
    _add_odometry(index, odometry)
    return index


def bag_files(bag: Path) -> list[Path]:
    """The files of a bag folder, or the one that is a bag."""
    return sorted(path for path in (bag.iterdir() if bag.is_dir() else [bag]) if path.is_file())


def decode_image(message: Message) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a recorded image."""
    content = _content(message)
    if message.type == COMPRESSED:
        return rgb_from_encoded(content.data)
    return rgb_from_raw(
        content.data,
        content.encoding,
        content.width,
        content.height,
        content.step,
        bool(content.is_bigendian),
    )


def encoded_jpeg(message: Message) -> bytes | None:
    """The JPEG file in a recorded image, if it is one."""
    data = bytes(_content(message).data) if message.type == COMPRESSED else b""
    return data if data[:2] == b"\xff\xd8" else None


def decode_depth(message: Message) -> np.ndarray:
    """(height, width) uint16 millimetres of a recorded depth image, 0 = none."""
    content = _content(message)
    return depth_mm_from_raw(
        content.data,
        content.encoding,
        content.width,
        content.height,
        content.step,
        bool(content.is_bigendian),
    )


def stamp_of(message: Message) -> int:
    """The stamp of a message that starts with a std_msgs/Header, without decoding the rest
    (megabytes, in an image)."""
    order = "big" if message.data[1:2] == b"\0" else "little"
    return int.from_bytes(message.data[4:8], order, signed=True) * 10**9 + int.from_bytes(
        message.data[8:12], order
    )


def _add_image(index: BagIndex, message: Message) -> None:
    _check_header(message)
    if message.topic not in index.images:
        index.images[message.topic] = _first_image(message)
    index.images[message.topic].stamps_ns.append(stamp_of(message))


def _first_image(message: Message) -> Images:
    content = _content(message)
    frame = frame_name(content.header.frame_id)
    if message.type == IMAGE:
        return Images(frame, content.encoding, (content.width, content.height))
    try:
        return Images(frame, content.format, encoded_size(io.BytesIO(bytes(content.data))))
    except SldError:  # a damaged one, or depth in a format of its own
        return Images(frame, content.format)


def _check_header(message: Message) -> None:
    """Cheaper than decoding megabytes of pixels."""
    try:
        order = "little" if message.data[1] & 1 else "big"
        length = int.from_bytes(message.data[12:16], order)
        if len(message.data) < 16 + length:
            raise ValueError(f"{len(message.data)} bytes")
        message.data[16 : 16 + length - 1].decode()
    except (IndexError, ValueError) as error:
        raise _malformed(message, error) from error


def _content(message: Message):
    """A message decoded."""
    try:
        return _store().deserialize_cdr(message.data, message.type)
    except Exception as error:  # the decoders of rosbags raise anything on damaged bytes
        raise _malformed(message, error) from error


def _malformed(message: Message, error: Exception) -> SldError:
    return SldError(
        f"a message of {message.topic} at {message.time_ns} ns is no {message.type} "
        f"({type(error).__name__}: {error})"
    )


def _add_transforms(index: BagIndex, message: Message) -> None:
    static = message.topic.endswith("tf_static")
    for t in _content(message).transforms:
        pose = t.transform
        _insert(index, t.header, t.child_frame_id, pose.rotation, pose.translation, static)


def _add_odometry(index: BagIndex, odometry: list) -> None:
    """The poses of frames that do not move in TF."""
    in_tf = {o.child_frame_id for o in odometry if index.tree.moves(frame_name(o.child_frame_id))}
    for o in odometry:
        if o.child_frame_id not in in_tf:
            pose = o.pose.pose
            _insert(index, o.header, o.child_frame_id, pose.orientation, pose.position, False)


def _insert(index: BagIndex, header, child: str, rotation, translation, static: bool) -> None:
    stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec
    try:
        R = rotation_from_quaternion([rotation.x, rotation.y, rotation.z, rotation.w])
        t = np.array([translation.x, translation.y, translation.z])
        if not np.isfinite(t).all():
            raise ValueError(f"translation {t.tolist()}: expected finite numbers")
    except ValueError as error:  # as tf2 does
        what = f"{header.frame_id} -> {child}"
        text = f"{what} at {stamp_ns} ns ignored, as all such: {error}"
        index.damage.setdefault(what, text)
        return
    T = make_transform(R, t)
    index.tree.insert(frame_name(header.frame_id), frame_name(child), stamp_ns, T, static)


@functools.cache
def _store():
    """The standard messages; those used here are the same in every distribution since Humble."""
    return get_typestore(Stores.ROS2_JAZZY)
