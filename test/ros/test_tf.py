"""The tree of frames: chains, interpolation and errors, by hand; the listener over DDS."""

import threading
import time

import numpy as np
import pytest

from sld_core.data.tf_tree import TransformError, TransformReason, TransformTree
from sld_core.geometry import make_transform, rotation_from_vector

SECOND = 10**9


def at(x=0.0, y=0.0, z=0.0, yaw=0.0):
    return make_transform(rotation_from_vector(np.array([0, 0, yaw])), np.array([x, y, z]))


@pytest.fixture
def tree():
    """odom -> base moves 1 m and turns 90 deg in one second; base -> camera and base -> lidar are
    static."""
    tree = TransformTree(10 * SECOND)
    for s in (0, 0.25, 0.75, 1):
        tree.insert("odom", "base", int((1 + s) * SECOND), at(s, 0, 0, s * np.pi / 2))
    tree.insert("base", "camera", 0, at(z=0.5), static=True)
    tree.insert("base", "lidar", 0, at(x=0.2), static=True)
    return tree


def test_interpolates_at_the_stamp_along_a_chain(tree):
    expected = at(0.5, 0, 0.5, np.pi / 4)
    np.testing.assert_allclose(
        tree.lookup("odom", "camera", int(1.5 * SECOND)), expected, atol=1e-12
    )
    np.testing.assert_allclose(
        tree.lookup("camera", "odom", int(1.5 * SECOND)), np.linalg.inv(expected), atol=1e-12
    )


def test_siblings_meet_in_their_common_parent(tree):
    np.testing.assert_allclose(
        tree.lookup("lidar", "camera", 99 * SECOND), at(-0.2, 0, 0.5), atol=1e-12
    )


def test_newest_is_what_every_moving_frame_has(tree):
    tree.insert("map", "odom", int(1.75 * SECOND), at(10.75))
    tree.insert("map", "odom", int(2.25 * SECOND), at(11.25))
    np.testing.assert_allclose(
        tree.lookup("map", "base", None), at(11 + 1, yaw=np.pi / 2), atol=1e-12
    )


@pytest.mark.parametrize(
    "target, source, stamp, reason, words",
    [
        ("odom", "camera", 0.5, TransformReason.TOO_OLD, "0.500 s before"),
        ("odom", "camera", 2.25, TransformReason.TOO_NEW, "0.250 s after"),
        (
            "odom",
            "gripper",
            1.5,
            TransformReason.UNKNOWN_FRAME,
            "gripper.*base, camera, island, lidar, odom, sea",
        ),
        (
            "camera",
            "island",
            1.5,
            TransformReason.DISCONNECTED,
            "odom < base < camera and sea < island",
        ),
    ],
)
def test_errors_say_why(tree, target, source, stamp, reason, words):
    tree.insert("sea", "island", 0, at(), static=True)
    with pytest.raises(TransformError, match=words) as error:
        tree.lookup(target, source, int(stamp * SECOND))
    assert error.value.reason is reason


def test_history_is_bounded_and_stamps_may_come_in_any_order():
    tree = TransformTree(10 * SECOND)
    for second in (3, 1, 2, 12):
        tree.insert("odom", "base", second * SECOND, at(second))
    assert tree.lookup("odom", "base", 2 * SECOND)[0, 3] == 2  # 10 s before the newest: still there
    with pytest.raises(TransformError, match="before"):
        tree.lookup("odom", "base", 1 * SECOND)


def test_time_that_jumps_back_starts_the_frame_again_and_leaves_static_ones():
    tree = TransformTree(10 * SECOND)
    tree.insert("base", "camera", 0, at(z=0.5), static=True)
    for second in (100, 101, 50, 50.25):  # a recording played in a loop
        tree.insert("odom", "base", int(second * SECOND), at(second))
    assert tree.lookup("odom", "camera", 50 * SECOND)[0, 3] == 50
    assert tree.lookup("odom", "camera", None)[0, 3] == 50.25
    with pytest.raises(TransformError, match="after the newest"):
        tree.lookup("odom", "base", 100 * SECOND)


def test_a_wide_gap_is_not_interpolated():
    tree = TransformTree()
    for second in (0, 0.5, 60):
        tree.insert("odom", "base", int(second * SECOND), at(second))
    assert tree.lookup("odom", "base", SECOND // 4)[0, 3] == 0.25
    assert tree.lookup("odom", "base", 60 * SECOND)[0, 3] == 60
    with pytest.raises(TransformError, match="gap of 59.500 s") as error:
        tree.lookup("odom", "base", 30 * SECOND)
    assert error.value.reason is TransformReason.GAP


def test_a_loop_of_frames_ends():
    tree = TransformTree()
    tree.insert("a", "b", 0, at(), static=True)
    tree.insert("b", "a", 0, at(), static=True)
    assert tree.ancestors("a") == ["a", "b"]


@pytest.mark.ros
def test_listener_waits_for_the_future_and_hears_static_frames_late(ros):
    from sld_ros.conversions import transform_message
    from sld_ros.tf import StaticTransformBroadcaster, TransformBroadcaster, TransformListener

    sender, receiver = ros.node("sender"), ros.node("receiver")
    static = StaticTransformBroadcaster(sender)
    static.send([transform_message(at(z=0.5), 0, "base", "camera")])
    static.send([transform_message(at(x=0.2), 0, "base", "lidar")])
    moving = TransformBroadcaster(sender)
    listener = TransformListener(receiver)
    ros.wait_for(lambda: sender.count_subscribers("/tf") == 1, "the listener")

    def send_later():
        time.sleep(0.3)
        moving.send(
            [transform_message(at(s), int(s * SECOND), "odom", "base") for s in (1.25, 1.75)]
        )

    thread = threading.Thread(target=send_later)
    thread.start()
    T = listener.lookup("odom", "camera", int(1.5 * SECOND), timeout_s=5.0)
    np.testing.assert_allclose(T, at(1.5, 0, 0.5), atol=1e-12)
    thread.join()
    np.testing.assert_allclose(listener.lookup("base", "lidar", None), at(x=0.2), atol=1e-12)
    start = time.monotonic()
    with pytest.raises(TransformError) as error:
        listener.lookup("odom", "camera", 3 * SECOND, timeout_s=0.2)
    assert error.value.reason is TransformReason.TOO_NEW and 0.2 <= time.monotonic() - start < 1.0
