import threading

import cv2
import numpy as np
import pytest

from sld_core.geometry import invert, make_transform, pose_error, rotation_from_vector
from sld_core.types import Camera, Frame

pytestmark = pytest.mark.ros


def straight_drive(metres: float, steps: int) -> list[np.ndarray]:
    return [make_transform(np.eye(3), np.array([x, 0, 0])) for x in np.linspace(0, metres, steps)]


def test_the_robot_is_where_the_mounted_camera_says():
    from sld_ros.demo.player import T_BASE_CAMERA, base_poses

    forward = T_BASE_CAMERA[:3, :3] @ [0, 0, 1]
    assert np.degrees(np.arctan2(forward[1], forward[0])) == pytest.approx(3)  # to the left
    assert np.degrees(np.arcsin(forward[2])) == pytest.approx(-5)  # down
    T_world_base = make_transform(
        rotation_from_vector(np.array([0, 0, 1.0])), np.array([2.0, 3.0, 0])
    )
    frame = Frame("a", None, Camera(4, 4, 2, 2, 2, 2), T_world_base @ T_BASE_CAMERA)
    assert np.allclose(base_poses([frame])[0], T_world_base)


def test_drifting_odometry_starts_elsewhere_and_drifts_by_a_percent_and_degrees():
    from sld_ros.demo.player import drifting_odometry

    truth = straight_drive(9.0, 91)
    ends, turns = [], []
    for seed in range(40):
        odometry = drifting_odometry(truth, np.random.default_rng(seed))
        assert pose_error(odometry[0], truth[0])[1] > 0.9
        moved = invert(odometry[0]) @ odometry[-1]
        ends.append(moved[0, 3])
        turns.append(np.degrees(np.arctan2(moved[1, 0], moved[0, 0])))
    assert np.mean(ends) == pytest.approx(9.09, abs=0.03)
    assert np.std(turns) == pytest.approx(
        0.5 * 3, rel=0.35
    )  # 0.5 degrees times the square root of 9 m


def test_what_is_played_arrives_with_one_stamp(ros, tmp_path):
    from nav_msgs.msg import Odometry
    from sensor_msgs.msg import CameraInfo, Image

    from sld_ros.conversions import ns_from_time
    from sld_ros.demo.player import BASE, CAMERA, ODOM, T_BASE_CAMERA, Player
    from sld_ros.tf import TransformListener

    image = np.zeros((48, 64, 3), np.uint8)
    image[:24] = (200, 30, 10)
    cv2.imwrite(str(tmp_path / "a.color.png"), image[..., ::-1])
    frame = Frame("a", tmp_path / "a.color.png", Camera(64, 48, 50, 50, 32.5, 24.5), np.eye(4))
    T_odom_base = make_transform(
        rotation_from_vector(np.array([0, 0, 0.5])), np.array([1.0, 2.0, 0])
    )

    player, listener = ros.node(Player()), ros.node("listener")
    tf, heard, arrived = TransformListener(listener), {}, threading.Event()

    def keep(message) -> None:
        heard[type(message)] = message
        if len(heard) == 3:
            arrived.set()

    for kind, topic in ((Image, "image"), (CameraInfo, "camera_info"), (Odometry, "odom")):
        listener.create_subscription(kind, topic, keep, 10)
    for _ in range(50):
        stamp_ns = player.play(frame, T_odom_base)
        if arrived.wait(0.2):
            break
    # what arrived may be of an earlier image than the last one played
    stamps = {ns_from_time(message.header.stamp) for message in heard.values()}
    assert heard[Image].header.frame_id == CAMERA and max(stamps) <= stamp_ns
    assert (np.frombuffer(heard[Image].data, np.uint8).reshape(48, 64, 3) == image).all()
    assert list(heard[CameraInfo].k) == [50, 0, 32, 0, 50, 24, 0, 0, 1]  # pixel centres at integers
    assert heard[Odometry].child_frame_id == BASE and heard[Odometry].pose.pose.position.y == 2.0
    assert np.allclose(
        tf.lookup(ODOM, CAMERA, ns_from_time(heard[Odometry].header.stamp), 2.0),
        T_odom_base @ T_BASE_CAMERA,
    )
