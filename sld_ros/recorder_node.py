"""Node `recorder`: services ~/start and ~/stop record a mapping drive into a bag, without decoding
a message."""

from __future__ import annotations

if __name__ == "__main__":
    from sld_ros.run import recorder

    recorder()

import datetime
import importlib
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sld.msg import TopicCount
from sld.srv import StartRecording, StopRecording

from sld_core.types import SldError
from sld_ros.bag_writer import BagWriter
from sld_ros.parameters import declare, parameter
from sld_ros.stamp_gaps import StampGaps

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# what a mapping drive cannot do without: any of these types
NEEDED = {
    "images": IMAGES,
    "a camera calibration": ("sensor_msgs/msg/CameraInfo",),
    "odometry or TF": ("tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"),
}
WARN_EVERY_S = 10.0


@dataclass(frozen=True)
class Parameters:
    output_folder: str = parameter("recordings", "Folder for the bags")
    topics: tuple[str, ...] = parameter(
        ("image", "camera_info", "odom", "/tf", "/tf_static"),
        "Topics to record; relative names follow remappings. A topic without a publisher is "
        "recorded from when one appears",
    )
    min_free_disk: int = parameter(2**30, "Bytes that must stay free on the disk", 0, 2**62)
    queue_size: int = parameter(
        256 * 2**20, "Bytes that may wait for the disk before messages are dropped", 2**20, 2**40
    )
    discovery_timeout: float = parameter(2.0, "How long ~/start waits for publishers, s", 0.0, 60.0)


def start() -> tuple[RecorderNode, SingleThreadedExecutor]:
    return RecorderNode(), SingleThreadedExecutor()


class RecorderNode(Node):
    def __init__(self):
        super().__init__("recorder")
        self._settings = declare(self, Parameters)
        self._bag: BagWriter | None = None
        self._gaps: dict[str, StampGaps] = {}  # by topic of images
        self._subscriptions_of_bag: list[Subscription] = []
        self._skipped: set[str] = set()  # topics that cannot be recorded
        self.create_service(StartRecording, "~/start", self._on_start)
        self.create_service(StopRecording, "~/stop", self._on_stop)
        self.create_timer(1.0, self._watch)

    def destroy_node(self) -> None:
        if self._bag is not None:
            self._stop()
        super().destroy_node()

    def _on_start(
        self, request: StartRecording.Request, response: StartRecording.Response
    ) -> StartRecording.Response:
        try:
            self._start(request.name)
        except SldError as error:
            response.error = str(error)
            self.get_logger().error(f"start: {error}")
            return response
        response.success = True
        response.path = str(self._bag.path)
        response.topics = list(self._bag.topics)
        return response

    def _on_stop(
        self, request: StopRecording.Request, response: StopRecording.Response
    ) -> StopRecording.Response:
        if self._bag is None:
            response.error = "nothing is being recorded; call ~/start first"
            return response
        bag = self._stop()
        response.success = not bag.error
        response.error = bag.error
        response.path = str(bag.path)
        response.duration = bag.duration_s
        response.topics = [
            TopicCount(
                topic=topic.name,
                type=topic.type,
                count=topic.written,
                dropped=topic.dropped,
                missing=self._gaps[topic.name].missing if topic.name in self._gaps else 0,
            )
            for topic in bag.topics.values()
        ]
        return response

    def _start(self, name: str) -> None:
        if self._bag is not None:
            raise SldError(f"already recording into {self._bag.path}; call ~/stop first")
        name = name or datetime.datetime.now().strftime("drive-%Y-%m-%d-%H-%M-%S")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise SldError(f"name {name!r}: expected letters, digits, '_', '-' and '.'")
        p = self._settings
        self._wait_for_publishers()
        for topic in self._topic_names():
            if (type_name := self._type_of(topic)) is not None:
                _message_class(topic, type_name)
        self._skipped = set()
        self._gaps = {}
        self._bag = BagWriter(
            Path(p.output_folder).expanduser().absolute() / name, p.queue_size, p.min_free_disk
        )
        self._subscribe()
        self.get_logger().info(f"recording {', '.join(self._bag.topics)} into {self._bag.path}")

    def _stop(self) -> BagWriter:
        for subscription in self._subscriptions_of_bag:
            self.destroy_subscription(subscription)
        bag = self._bag
        self._bag = None
        self._subscriptions_of_bag = []
        bag.close()
        self.get_logger().info(
            f"{bag.path}: " + ", ".join(f"{t.written} of {t.name}" for t in bag.topics.values())
        )
        if losses := self._losses():
            self.get_logger().warning(losses)
        return bag

    def _wait_for_publishers(self) -> None:
        """Until everything needed has a publisher; a node that has just started sees publishers
        only after a moment."""
        deadline = time.monotonic() + self._settings.discovery_timeout
        while missing := self._without_publisher():
            if time.monotonic() > deadline:
                topics = ", ".join(self._topic_names())
                raise SldError(
                    f"no publisher of {' nor of '.join(missing)} on {topics}; start the "
                    "drivers, or set remappings or `topics`"
                )
            time.sleep(0.05)

    def _without_publisher(self) -> list[str]:
        types = {self._type_of(topic) for topic in self._topic_names()}
        return [what for what, any_of in NEEDED.items() if not types & set(any_of)]

    def _topic_names(self) -> list[str]:
        return [self.resolve_topic_name(topic) for topic in self._settings.topics]

    def _type_of(self, topic: str) -> str | None:
        """Type of the topic's publishers, None without one."""
        return next((info.topic_type for info in self.get_publishers_info_by_topic(topic)), None)

    def _watch(self) -> None:
        """Once a second: topics that have a publisher by now, a recording that has ended by itself,
        and messages lost."""
        if self._bag is None:
            return
        self._subscribe()
        if self._bag.error:
            self.get_logger().error(self._bag.error, throttle_duration_sec=WARN_EVERY_S)
        if dropped := sum(t.dropped for t in self._bag.topics.values()):
            self.get_logger().warning(
                f"{dropped} messages dropped so far: the disk is too slow or full",
                throttle_duration_sec=WARN_EVERY_S,
            )
        if losses := self._losses():
            self.get_logger().warning(losses, throttle_duration_sec=WARN_EVERY_S)

    def _losses(self) -> str:
        """Which images were lost on their way and what to do, where they are more than a few."""
        lost = [f"{g.missing} of {topic}" for topic, g in self._gaps.items() if g.is_serious]
        if not lost:
            return ""
        return (
            f"images lost on their way, by gaps in their stamps: {', '.join(lost)}; give the "
            "driver and this node more shared memory (config/fastdds.xml)"
        )

    def _subscribe(self) -> None:
        for topic in self._topic_names():
            type_name = self._type_of(topic)
            if type_name is None or topic in self._bag.topics or topic in self._skipped:
                continue
            try:
                kind = _message_class(topic, type_name)
            except SldError as error:
                self._skipped.add(topic)
                self.get_logger().error(f"{error}; it is not in the recording")
                continue
            offered = [info.qos_profile for info in self.get_publishers_info_by_topic(topic)]
            self._bag.add_topic(topic, type_name, offered)
            if type_name in IMAGES:
                self._gaps[topic] = StampGaps()
            self._subscriptions_of_bag.append(
                self.create_subscription(
                    kind, topic, self._writer_for(topic), _matching_qos(offered), raw=True
                )
            )

    def _writer_for(self, topic: str) -> Callable[[bytes], None]:
        bag = self._bag
        gaps = self._gaps.get(topic)

        def write(data: bytes) -> None:
            bag.write(topic, self.get_clock().now().nanoseconds, data)
            if gaps is not None:
                gaps.add(_stamp_ns(data))

        return write


def _stamp_ns(data: bytes) -> int:
    """The stamp of a serialized message that begins with a header."""
    little_endian = data[1] & 1
    seconds, nanoseconds = struct.unpack_from("<iI" if little_endian else ">iI", data, 4)
    return seconds * 10**9 + nanoseconds


def _message_class(topic: str, type_name: str) -> type:
    """The class of "package/msg/Name"; SldError where it is not installed."""
    try:
        package, kind, name = type_name.split("/")
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SldError(
            f"topic {topic}: its type {type_name} cannot be imported ({error}); install or "
            "source its package, or take the topic out of `topics`"
        ) from None


def _matching_qos(offered: list[QoSProfile]) -> QoSProfile:
    """The strictest profile that every publisher fits, as `ros2 bag record` chooses it."""
    reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in offered)
    latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in offered)
    return QoSProfile(
        depth=100,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
