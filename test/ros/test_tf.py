"""The tree of frames: chains, interpolation and errors, by hand. The listener: one contract, kept
by tf2_ros and by the stand-in, and once over DDS."""

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


def test_check_says_what_lookup_would(tree):
    tree.insert("sea", "island", 0, None, static=True)
    tree.check("odom", "camera", int(1.5 * SECOND))
    tree.check("odom", "camera", None)
    for target, source, second in (
        ("odom", "camera", 0.5),
        ("odom", "camera", 3),
        ("odom", "gripper", 1.5),
        ("camera", "island", 1.5),
    ):
        with pytest.raises(TransformError) as checked:
            tree.check(target, source, int(second * SECOND))
        with pytest.raises(TransformError) as looked_up:
            tree.lookup(target, source, int(second * SECOND))
        assert checked.value.reason is looked_up.value.reason
        assert str(checked.value) == str(looked_up.value)


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


@pytest.fixture(params=["the stand-in", "tf2_ros"])
def tf2(request):
    """The module that computes, or None."""
    if request.param == "the stand-in":
        return None
    return pytest.importorskip("tf2_ros", reason="tf2_ros is not installed")


@pytest.fixture
def listener(ros, tf2):
    from sld_ros.tf import TransformListener

    return TransformListener(ros.node("listener"), tf2)


def moved(*seconds, parent="odom", child="base", yaw=0.0):
    """A message of /tf: the child is at as many metres as it is seconds."""
    from tf2_msgs.msg import TFMessage

    from sld_ros.conversions import transform_message

    return TFMessage(
        transforms=[
            transform_message(at(s, yaw=yaw * s), int(s * SECOND), parent, child) for s in seconds
        ]
    )


def x_at(listener, second, target="odom", source="base", **more):
    stamp = None if second is None else int(second * SECOND)
    return pytest.approx(listener.lookup(target, source, stamp, **more)[0, 3], abs=1e-9)


def refused(listener, second, target="odom", source="base"):
    """Why the lookup is refused."""
    with pytest.raises(TransformError) as error:
        listener.lookup(target, source, int(second * SECOND))
    assert str(error.value)
    return error.value.reason


@pytest.mark.ros
class TestContract:
    """What tf2_ros and the stand-in do alike."""

    def test_interpolation(self, listener):
        listener.insert(moved(1, 1.25, yaw=1.0))
        listener.insert_static(moved(0.5, parent="base", child="camera"))
        expected = at(1.125, yaw=1.125) @ at(0.5)
        for target, source, T in (
            ("odom", "camera", expected),
            ("camera", "odom", np.linalg.inv(expected)),
        ):
            found = listener.lookup(target, source, int(1.125 * SECOND))
            np.testing.assert_allclose(found, T, atol=1e-6)
        assert x_at(listener, None) == 1.25
        assert x_at(listener, 99, "base", "camera") == 0.5

    def test_reasons(self, listener):
        reasons = TransformReason
        assert refused(listener, 1) is reasons.UNKNOWN_FRAME
        listener.insert(moved(1))
        assert refused(listener, 0.5) is reasons.TOO_OLD  # before the only sample
        assert refused(listener, 1.5) is reasons.TOO_NEW
        listener.insert(moved(1.25))
        assert refused(listener, 0.5) is reasons.TOO_OLD
        assert refused(listener, 1.5) is reasons.TOO_NEW
        assert refused(listener, 1, source="gripper") is reasons.UNKNOWN_FRAME
        listener.insert_static(moved(1, parent="sea", child="island"))
        assert refused(listener, 1, source="island") is reasons.DISCONNECTED

    def test_a_wide_gap_is_not_interpolated(self, listener):
        listener.insert(moved(1, 1.5, 4))
        assert x_at(listener, 1.25) == 1.25 and x_at(listener, 4) == 4
        assert refused(listener, 3) is TransformReason.GAP

    @pytest.mark.parametrize("second", [0, -1])
    def test_a_stamp_that_is_not_set_is_refused(self, listener, second):
        listener.insert(moved(1, 1.25))
        assert refused(listener, second) is TransformReason.NO_STAMP

    def test_frames_with_a_slash_or_without_a_name(self, listener):
        listener.insert(moved(1, parent="/odom", child="/base"))
        assert x_at(listener, 1, "/odom", "base") == x_at(listener, 1, "odom", "/base") == 1
        for name in ("", "/"):
            assert refused(listener, 1, source=name) is TransformReason.UNKNOWN_FRAME
            assert refused(listener, 1, target=name) is TransformReason.UNKNOWN_FRAME
            listener.insert(moved(1, child=name))
            listener.insert(moved(1, parent=name, child="gripper"))
        assert refused(listener, 1, source="gripper") is TransformReason.UNKNOWN_FRAME

    @pytest.mark.parametrize("x, w", [(np.nan, 1.0), (1.0, np.nan), (1.0, 0.0), (1.0, 1.1)])
    def test_what_is_not_a_transform_is_ignored(self, listener, x, w):
        message = moved(1)
        message.transforms[0].transform.translation.x = x
        message.transforms[0].transform.rotation.w = w
        listener.insert(message)
        assert refused(listener, 1) is TransformReason.UNKNOWN_FRAME
        listener.insert(moved(-1))
        assert refused(listener, 1) is TransformReason.UNKNOWN_FRAME

    def test_one_late_message_is_ignored(self, listener):
        listener.insert(moved(100, 100.25))
        for late in (50, 49.75, 88):
            listener.insert(moved(late))
            listener.insert(moved(100.5))
            assert x_at(listener, 100.125) == 100.125
            assert refused(listener, late) is TransformReason.TOO_OLD

    def test_a_recording_in_a_loop_starts_again_without_a_clock(self, listener):
        listener.insert_static(moved(1, parent="base", child="camera"))
        listener.insert(moved(100, 100.25))
        listener.insert(moved(100, 100.25, parent="map", child="odom"))
        listener.insert(moved(50, 50.25, 50.5))  # the first one might have been late
        assert x_at(listener, 50.25) == 50.25 and x_at(listener, 50.375) == 50.375
        assert x_at(listener, 50.25, source="camera") == 51.25
        assert refused(listener, 100) is TransformReason.TOO_NEW
        assert refused(listener, 50.25, "map") is TransformReason.UNKNOWN_FRAME
        listener.insert(moved(50, 50.25, parent="map", child="odom"))
        assert x_at(listener, 50.25, "map") == 100.5

    def test_history_is_bounded(self, listener):
        listener.insert(moved(*np.arange(1, 13, 0.25)))
        assert refused(listener, 2) is TransformReason.TOO_OLD
        assert x_at(listener, 3) == 3

    def test_a_clock_that_jumps_back_starts_again(self, ros, tf2):
        from rclpy.node import Node
        from rclpy.parameter import Parameter
        from rosgraph_msgs.msg import Clock

        from sld_ros.conversions import time_message
        from sld_ros.tf import TransformListener

        simulated = [Parameter("use_sim_time", value=True)]
        node = ros.node(Node("simulated", parameter_overrides=simulated))
        listener = TransformListener(node, tf2)
        clock = ros.node("simulator").create_publisher(Clock, "/clock", 10)

        def wait_for(second):
            def reached():
                clock.publish(Clock(clock=time_message(second * SECOND)))
                return node.get_clock().now().nanoseconds == second * SECOND

            ros.wait_for(reached, f"second {second}")

        wait_for(20)
        listener.insert_static(moved(1, parent="base", child="camera"))
        listener.insert(moved(20, 20.25))
        assert x_at(listener, 20.125) == 20.125
        wait_for(15)  # by less than the history: stamps alone would not tell
        assert refused(listener, 20.125) is TransformReason.UNKNOWN_FRAME
        listener.insert(moved(15, 15.25))
        assert x_at(listener, 15.125, source="camera") == 16.125
        assert refused(listener, 20.125) is TransformReason.TOO_NEW


@pytest.mark.ros
def test_listener_waits_for_the_future_and_hears_static_frames_late(ros, tf2):
    from sld_ros.conversions import transform_message
    from sld_ros.tf import StaticTransformBroadcaster, TransformBroadcaster, TransformListener

    sender, receiver = ros.node("sender"), ros.node("receiver")
    static = StaticTransformBroadcaster(sender)
    static.send([transform_message(at(z=0.5), 0, "base", "camera")])
    static.send([transform_message(at(x=0.2), 0, "base", "lidar")])
    moving = TransformBroadcaster(sender)
    listener = TransformListener(receiver, tf2)
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
