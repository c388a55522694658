"""The transform map->odom: computed from a camera pose, and kept alive on TF between fixes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node

from sld_core.data.tf_tree import TransformError, frame_name
from sld_ros.conversions import transform_message
from sld_ros.tf import TransformBroadcaster, TransformListener


@dataclass(frozen=True)
class _Fix:
    T_map_odom: np.ndarray
    stamp_ns: int  # of the image
    received_ns: int  # when the image arrived, by the node's clock


class MapOdom:
    """Publishes map->odom from the first fix on.

    Each fix is sent once with the stamp of its image, so that a lookup there gives exactly the
    camera pose found. Between fixes the last one is repeated, dated `tolerance_s` ahead of the
    clock of the images (as AMCL does), so that lookups of "now" succeed."""

    def __init__(
        self, node: Node, map_frame: str, odom_frame: str, base_frame: str, tolerance_s: float
    ):
        self._node = node
        self._map = frame_name(map_frame)
        self._odom = frame_name(odom_frame)
        self._base = frame_name(base_frame)
        self._tolerance_ns = int(tolerance_s * 1e9)
        self._listener = TransformListener(node)
        self._broadcaster = TransformBroadcaster(node)
        self._fix: _Fix | None = None
        self._last_repeat_ns = 0
        # fixes and repeats come from different threads; stamps must go out in order
        self._lock = threading.Lock()

    def update(
        self,
        T_map_camera: np.ndarray,
        camera_frame: str,
        stamp_ns: int,
        received_ns: int,
        timeout_s: float,
    ) -> None:
        """Take a new fix; raises TransformError, and changes nothing, when TF cannot say where the
        camera was in odom."""
        T_camera_base = self._lookup(camera_frame, self._base, stamp_ns, timeout_s)
        T_base_odom = self._lookup(self._base, self._odom, stamp_ns, timeout_s)
        fix = _Fix(T_map_camera @ T_camera_base @ T_base_odom, stamp_ns, received_ns)
        with self._lock:
            # the first one, or time went back: a replay starts again
            if self._fix is None or stamp_ns < self._fix.stamp_ns:
                self._last_repeat_ns = 0
            self._fix = fix
            self._send(fix.T_map_odom, stamp_ns)
        self.repeat()

    def repeat(self) -> None:
        """Send the last fix again, with a later stamp. Nothing is sent before the first fix, or
        while the clock stands still."""
        with self._lock:
            fix = self._fix
            if fix is None:
                return
            # the time since the image arrived is added to its stamp: right for live images and for
            # old ones that are replayed
            since_ns = self._node.get_clock().now().nanoseconds - fix.received_ns
            stamp_ns = fix.stamp_ns + since_ns + self._tolerance_ns
            if stamp_ns > self._last_repeat_ns:
                self._last_repeat_ns = stamp_ns
                self._send(fix.T_map_odom, stamp_ns)

    def reset(self) -> None:
        """Forget the fix: the map has changed."""
        with self._lock:
            self._fix = None

    def _lookup(self, target: str, source: str, stamp_ns: int, timeout_s: float) -> np.ndarray:
        try:
            return self._listener.lookup(target, source, stamp_ns, timeout_s)
        except TransformError as error:
            raise TransformError(
                error.reason, f"no TF between {source} and {target} at the image stamp: {error}"
            ) from error

    def _send(self, T_map_odom: np.ndarray, stamp_ns: int) -> None:
        self._broadcaster.send([transform_message(T_map_odom, stamp_ns, self._map, self._odom)])
