"""A robot that only exists as recorded or rendered frames: publishes camera, odometry and TF as
drivers do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from sld_core.camera.images import read_image
from sld_core.geometry import invert, make_transform, rotation_from_vector
from sld_core.types import Frame
from sld_ros.conversions import camera_info_message, image_message, transform_message
from sld_ros.tf import StaticTransformBroadcaster, TransformBroadcaster

ODOM, BASE, CAMERA = "odom", "base_link", "camera"
# the camera sits 12 cm before, 3 cm left of and 90 cm above the robot's centre, looks 3 degrees
# left and 5 degrees down
T_BASE_CAMERA = make_transform(
    rotation_from_vector(np.array([0, 0, np.radians(3)]))
    @ rotation_from_vector(np.array([0, np.radians(5), 0]))
    @ np.array(
        [[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]
    ),  # optical axes (z forward, x right) in the robot's (x forward, z up)
    np.array([0.12, 0.03, 0.9]),
)


class Player(Node):
    """Publishes `image`, `camera_info`, `odom`, TF odom->base_link and the camera's mount on
    /tf_static."""

    def __init__(self):
        super().__init__("player")
        self.images = self.create_publisher(Image, "image", 10)
        self._camera_info = self.create_publisher(CameraInfo, "camera_info", 10)
        self._odometry = self.create_publisher(Odometry, "odom", 10)
        self._tf = TransformBroadcaster(self)
        StaticTransformBroadcaster(self).send([transform_message(T_BASE_CAMERA, 0, BASE, CAMERA)])

    def play(self, frame: Frame, T_odom_base: np.ndarray) -> int:
        """Publish one frame and where odometry sees the robot, stamped now; returns the stamp in
        nanoseconds."""
        rgb = read_image(frame.image_path)
        stamp_ns = self.get_clock().now().nanoseconds
        moved = transform_message(T_odom_base, stamp_ns, ODOM, BASE)
        self._tf.send([moved])
        self._odometry.publish(_odometry_message(moved))
        self._camera_info.publish(camera_info_message(frame.camera, stamp_ns, CAMERA))
        self.images.publish(image_message(rgb, stamp_ns, CAMERA))
        return stamp_ns


def base_poses(frames: Sequence[Frame]) -> list[np.ndarray]:
    """Where the robot truly is in the world (4x4), at each frame."""
    return [frame.T_world_camera @ invert(T_BASE_CAMERA) for frame in frames]


def drifting_odometry(
    T_world_base: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """T_odom_base of a robot that switched on anywhere: another origin and heading, a scale off by
    1 %, and a random walk of 1 cm and 0.5 degrees of yaw per square root of a metre driven."""
    start = make_transform(
        rotation_from_vector(np.array([0, 0, rng.uniform(1, 5)])),
        rng.uniform(-5, 5, 3) * [1, 1, 0.1],
    )
    odometry = [start]
    for T_a, T_b in zip(T_world_base, T_world_base[1:]):
        T_step = invert(T_a) @ T_b
        spread = np.sqrt(np.linalg.norm(T_step[:3, 3]))
        R = T_step[:3, :3] @ rotation_from_vector(
            np.array([0, 0, np.radians(0.5) * spread * rng.standard_normal()])
        )
        t = 1.01 * T_step[:3, 3] + 0.01 * spread * rng.standard_normal(3) * [1, 1, 0]
        odometry.append(odometry[-1] @ make_transform(R, t))
    return odometry


def _odometry_message(moved) -> Odometry:
    message = Odometry(header=moved.header, child_frame_id=moved.child_frame_id)
    t = moved.transform.translation
    message.pose.pose.position = Point(x=t.x, y=t.y, z=t.z)
    message.pose.pose.orientation = moved.transform.rotation
    return message
