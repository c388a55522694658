"""TF: lookups and broadcasts by tf2_ros where it is installed, else by a stand-in of our own on
tf2_msgs."""

from __future__ import annotations

import threading
import time

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from sld_core.data.tf_tree import TransformError, TransformReason, TransformTree
from sld_ros.conversions import matrix_from_transform, ns_from_time

try:  # on no package registry: a robot has it from apt
    import tf2_ros
except ImportError:
    tf2_ros = None

TF_QOS = QoSProfile(depth=100)
STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
HISTORY_S = 10.0


def TransformListener(node: Node) -> Tf2Listener | TreeListener:
    """A listener to /tf and /tf_static; says at start which implementation it is."""
    kind = Tf2Listener if tf2_ros else TreeListener
    node.get_logger().info(
        f"TF by {'tf2_ros' if tf2_ros else 'the stand-in of sld (tf2_ros is not installed)'}"
    )
    return kind(node)


class TreeListener:
    """The stand-in: a TransformTree fed from /tf and /tf_static."""

    def __init__(self, node: Node):
        self._node = node
        self._tree = TransformTree(int(HISTORY_S * 1e9))
        self._changed = threading.Condition()
        node.create_subscription(TFMessage, "/tf", lambda m: self._insert(m, static=False), TF_QOS)
        node.create_subscription(
            TFMessage, "/tf_static", lambda m: self._insert(m, static=True), STATIC_QOS
        )

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout_s: float = 0.0
    ) -> np.ndarray:
        """T_target_source (4x4) at a stamp, interpolated; None is the newest. Raises TransformError
        after the time-out.

        With a time-out, call it from another thread than the one that spins."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                try:
                    return self._tree.lookup(target, source, stamp_ns)
                except TransformError as error:
                    left = deadline - time.monotonic()
                    if (
                        left <= 0 or error.reason is TransformReason.TOO_OLD
                    ):  # waiting brings nothing older
                        raise
                self._changed.wait(left)

    def _insert(self, message: TFMessage, static: bool) -> None:
        with self._changed:
            for t in message.transforms:
                parent, child = (
                    t.header.frame_id.removeprefix("/"),
                    t.child_frame_id.removeprefix("/"),
                )
                try:
                    self._tree.insert(
                        parent,
                        child,
                        ns_from_time(t.header.stamp),
                        matrix_from_transform(t.transform),
                        static,
                    )
                except ValueError as error:
                    self._node.get_logger().warning(
                        f"TF {parent} -> {child} ignored: {error}", throttle_duration_sec=5.0
                    )
            self._changed.notify_all()


class Tf2Listener:
    """tf2_ros behind the same interface."""

    def __init__(self, node: Node):
        self._buffer = tf2_ros.Buffer(Duration(seconds=HISTORY_S))
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout_s: float = 0.0
    ) -> np.ndarray:
        """As TreeListener.lookup."""
        try:
            found = self._buffer.lookup_transform(
                target, source, Time(nanoseconds=stamp_ns or 0), Duration(seconds=timeout_s)
            )
        except tf2_ros.LookupException as error:
            raise TransformError(TransformReason.UNKNOWN_FRAME, str(error)) from error
        except tf2_ros.ConnectivityException as error:
            raise TransformError(TransformReason.DISCONNECTED, str(error)) from error
        except tf2_ros.ExtrapolationException as error:
            reason = TransformReason.TOO_OLD if "past" in str(error) else TransformReason.TOO_NEW
            raise TransformError(reason, str(error)) from error
        return matrix_from_transform(found.transform)


class TransformBroadcaster:
    """Sends moving transforms; tf2_ros would send the same message with the same quality of
    service."""

    def __init__(self, node: Node):
        self._publisher = node.create_publisher(TFMessage, "/tf", TF_QOS)

    def send(self, transforms: list[TransformStamped]) -> None:
        self._publisher.publish(TFMessage(transforms=transforms))


class StaticTransformBroadcaster:
    """Sends transforms that hold for ever; late listeners get them too, so each message repeats all
    of this node's."""

    def __init__(self, node: Node):
        self._publisher = node.create_publisher(
            TFMessage,
            "/tf_static",
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )
        self._transforms: dict[str, TransformStamped] = {}

    def send(self, transforms: list[TransformStamped]) -> None:
        self._transforms.update({t.child_frame_id: t for t in transforms})
        self._publisher.publish(TFMessage(transforms=list(self._transforms.values())))
