"""Node `recorder`: services ~/start and ~/stop record a mapping drive into a bag, without decoding
a message."""

from __future__ import annotations

import datetime
import importlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sld.msg import TopicCount
from sld.srv import StartRecording, StopRecording

from sld_core.types import SldError
from sld_ros.bag_writer import BagWriter
from sld_ros.parameters import declare, parameter
from sld_ros.run import run

# what a mapping drive cannot do without: any of these types
NEEDED = {
    "images": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "a camera calibration": ("sensor_msgs/msg/CameraInfo",),
    "odometry or TF": ("tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"),
}


@dataclass(frozen=True)
class Parameters:
    output_folder: str = parameter("recordings", "Folder that receives the bags")
    topics: tuple[str, ...] = parameter(
        ("image", "camera_info", "odom", "/tf", "/tf_static"),
        "Topics to record; relative names follow remappings. Those without a publisher are "
        "taken up when one appears",
    )
    min_free_disk: int = parameter(2**30, "Bytes that must stay free on the disk", 0, 2**62)
    queue_size: int = parameter(
        256 * 2**20, "Bytes that may wait for the disk before messages are dropped", 2**20, 2**40
    )
    discovery_timeout: float = parameter(2.0, "How long ~/start waits for publishers, s", 0.0, 60.0)


class RecorderNode(Node):
    def __init__(self):
        super().__init__("recorder")
        self._settings = declare(self, Parameters)
        self._bag: BagWriter | None = None
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
            response.success, response.path, response.topics = (
                True,
                str(self._bag.path),
                list(self._bag.topics),
            )
        except SldError as error:
            response.error = str(error)
            self.get_logger().error(f"start: {error}")
        return response

    def _on_stop(
        self, request: StopRecording.Request, response: StopRecording.Response
    ) -> StopRecording.Response:
        if self._bag is None:
            response.error = "nothing is being recorded; call ~/start first"
            return response
        bag = self._stop()
        response.success, response.error, response.path, response.duration = (
            not bag.error,
            bag.error,
            str(bag.path),
            bag.duration_s,
        )
        response.topics = [
            TopicCount(topic=t.name, type=t.type, count=t.written, dropped=t.dropped)
            for t in bag.topics.values()
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
        self._bag = BagWriter(
            Path(p.output_folder).expanduser().absolute() / name, p.queue_size, p.min_free_disk
        )
        self._subscribe()
        self.get_logger().info(f"recording {', '.join(self._bag.topics)} into {self._bag.path}")

    def _stop(self) -> BagWriter:
        for subscription in self._subscriptions_of_bag:
            self.destroy_subscription(subscription)
        bag, self._bag, self._subscriptions_of_bag = self._bag, None, []
        bag.close()
        self.get_logger().info(
            f"{bag.path}: " + ", ".join(f"{t.written} of {t.name}" for t in bag.topics.values())
        )
        return bag

    def _wait_for_publishers(self) -> None:
        """Until all that is needed has a publisher; a graph just joined shows its publishers only
        after a moment."""
        deadline = time.monotonic() + self._settings.discovery_timeout
        while missing := self._missing():
            if time.monotonic() > deadline:
                topics = ", ".join(self._topic_names())
                raise SldError(
                    f"no publisher of {' nor of '.join(missing)} on {topics}; start the "
                    "drivers, or set remappings or `topics`"
                )
            time.sleep(0.05)

    def _missing(self) -> list[str]:
        types = {self._type_of(topic) for topic in self._topic_names()}
        return [what for what, any_of in NEEDED.items() if not types & set(any_of)]

    def _topic_names(self) -> list[str]:
        return [self.resolve_topic_name(topic) for topic in self._settings.topics]

    def _type_of(self, topic: str) -> str | None:
        """Type of the topic's publishers, None without one."""
        return next((info.topic_type for info in self.get_publishers_info_by_topic(topic)), None)

    def _watch(self) -> None:
        """Once a second: topics that got a publisher since, and a recording that ended by
        itself."""
        if self._bag is None:
            return
        self._subscribe()
        if self._bag.error:
            self.get_logger().error(self._bag.error, throttle_duration_sec=10.0)
        if dropped := sum(t.dropped for t in self._bag.topics.values()):
            self.get_logger().warning(
                f"{dropped} messages dropped so far: the disk is too slow or full",
                throttle_duration_sec=10.0,
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
            self._subscriptions_of_bag.append(
                self.create_subscription(
                    kind, topic, self._writer_for(topic), _matching_qos(offered), raw=True
                )
            )

    def _writer_for(self, topic: str):
        bag = self._bag
        return lambda data: bag.write(topic, self.get_clock().now().nanoseconds, data)


def _message_class(topic: str, type_name: str) -> type:
    """The class of "package/msg/Name"; SldError where it is not installed."""
    try:
        package, kind, name = type_name.split("/")
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SldError(
            f"topic {topic}: its type {type_name} cannot be imported ({error}); install or "
            "source its package, "
            "or take the topic out of `topics`"
        ) from None


def _matching_qos(offered: list[QoSProfile]) -> QoSProfile:
    """The strictest profile that hears every publisher, as `ros2 bag record` chooses it."""
    reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in offered)
    latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in offered)
    return QoSProfile(
        depth=100,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def main() -> None:
    run(RecorderNode)


if __name__ == "__main__":
    main()
