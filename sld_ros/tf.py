"""TF: lookups and broadcasts. tf2_ros computes where it is installed, a stand-in of our own
elsewhere; what can be looked up is decided here, the same for both."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from sld_core.data.tf_tree import TransformError, TransformReason, TransformTree, frame_name
from sld_ros.conversions import matrix_from_transform, ns_from_time

try:  # on no package registry: a robot has it from apt
    import tf2_ros
except ImportError:
    tf2_ros = None

TF_QOS = QoSProfile(depth=100)
STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
HISTORY_S = 10.0
MAX_SQUARE_OFF = 0.01  # of a quaternion's length, squared; tf2 ignores what is further off


class TransformListener:
    """Listens to /tf and /tf_static.

    A TransformTree decides what can be looked up, since tf2 interpolates over gaps of any length,
    takes stamp 0 for the newest, and after a jump back in time ignores all that comes until the old
    time is reached again. `tf2` is the module tf2_ros, or None for the stand-in."""

    def __init__(self, node: Node, tf2=tf2_ros):
        self._logger = node.get_logger()
        self._logger.info(f"TF by {'tf2_ros' if tf2 else 'sld itself (there is no tf2_ros)'}")
        self._tf2 = tf2
        # longer than the tree's history, so that it has whatever the tree allows
        self._buffer = tf2.Buffer(Duration(seconds=2 * HISTORY_S)) if tf2 else None
        self._tree = TransformTree(int(HISTORY_S * 1e9))
        self._changed = threading.Condition()
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jump = node.get_clock().create_jump_callback(backwards, post_callback=self._on_jump)
        node.create_subscription(TFMessage, "/tf", self.insert, TF_QOS)
        node.create_subscription(TFMessage, "/tf_static", self.insert_static, STATIC_QOS)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, timeout_s: float = 0.0
    ) -> np.ndarray:
        """T_target_source (4x4) at a stamp, interpolated; None is the newest. Raises TransformError
        after the time-out.

        With a time-out, call it from another thread than the one that spins."""
        target, source = frame_name(target), frame_name(source)
        if not target or not source:
            text = "a frame has no name; set the frame_id of the images, or camera_frame"
            raise TransformError(TransformReason.UNKNOWN_FRAME, text)
        if stamp_ns is not None and stamp_ns <= 0:
            text = f"the stamp is {stamp_ns / 1e9:.9g} s, as if the driver set none"
            raise TransformError(TransformReason.NO_STAMP, text)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                try:
                    return self._at(target, source, stamp_ns)
                except TransformError as error:
                    left = deadline - time.monotonic()
                    # waiting brings nothing older
                    if left <= 0 or error.reason is TransformReason.TOO_OLD:
                        raise
                self._changed.wait(left)

    def insert(self, message: TFMessage, static: bool = False) -> None:
        """Take a message of /tf."""
        with self._changed:
            for transform in message.transforms:
                try:
                    self._insert(transform, static)
                except ValueError as error:
                    names = f"{transform.header.frame_id} -> {transform.child_frame_id}"
                    self._logger.warning(f"TF {names} ignored: {error}", throttle_duration_sec=5.0)
            self._changed.notify_all()

    def insert_static(self, message: TFMessage) -> None:
        """Take a message of /tf_static."""
        self.insert(message, static=True)

    def _insert(self, message: TransformStamped, static: bool) -> None:
        parent, child = frame_name(message.header.frame_id), frame_name(message.child_frame_id)
        stamp_ns = ns_from_time(message.header.stamp)
        _check(message, parent, child, stamp_ns)
        T = None if self._buffer else matrix_from_transform(message.transform)
        if self._tree.insert(parent, child, stamp_ns, T, static):
            self._logger.warning("stamps on TF jumped back: started again")
            if self._buffer:
                self._buffer.clear()
        if self._buffer and static:
            self._buffer.set_transform_static(message, "sld")
        elif self._buffer:
            self._buffer.set_transform(message, "sld")

    def _at(self, target: str, source: str, stamp_ns: int | None) -> np.ndarray:
        if self._buffer is None:
            return self._tree.lookup(target, source, stamp_ns)
        self._tree.check(target, source, stamp_ns)
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns or 0))
        except (self._tf2.TransformException, ValueError) as error:
            raise TransformError(TransformReason.TF2, str(error)) from error
        return matrix_from_transform(found.transform)

    def _on_jump(self, jump: TimeJump) -> None:
        self._logger.warning("the clock jumped back or was changed: TF starts again")
        with self._changed:
            self._tree.clear()
            if self._buffer:
                self._buffer.clear()


def _check(message: TransformStamped, parent: str, child: str, stamp_ns: int) -> None:
    """Raise ValueError for what tf2 ignores."""
    t, q = message.transform.translation, message.transform.rotation
    length = math.hypot(q.x, q.y, q.z, q.w)
    if not parent or not child or parent == child:
        raise ValueError("expected the names of two frames")
    if stamp_ns < 0:
        raise ValueError(f"stamp {stamp_ns} ns: expected a time after 0")
    if not math.isfinite(length + t.x + t.y + t.z):
        raise ValueError("expected finite numbers")
    if abs(length**2 - 1) > MAX_SQUARE_OFF:
        raise ValueError(f"a quaternion of length {length:.3f}: expected 1")


class TransformBroadcaster:
    """Sends moving transforms: the message of tf2_ros, with its quality of service."""

    def __init__(self, node: Node):
        self._publisher = node.create_publisher(TFMessage, "/tf", TF_QOS)

    def send(self, transforms: list[TransformStamped]) -> None:
        self._publisher.publish(TFMessage(transforms=transforms))


class StaticTransformBroadcaster:
    """Sends transforms that always hold. Late listeners get the last message only, so each message
    has all transforms of this node."""

    def __init__(self, node: Node):
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._publisher = node.create_publisher(TFMessage, "/tf_static", latched)
        self._transforms: dict[str, TransformStamped] = {}

    def send(self, transforms: list[TransformStamped]) -> None:
        self._transforms.update({t.child_frame_id: t for t in transforms})
        self._publisher.publish(TFMessage(transforms=list(self._transforms.values())))
