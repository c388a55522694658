"""The localizer node over DDS with a fake localizer whose answers the test decides."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sld_core.data.tf_tree import MAX_GAP_S
from sld_core.geometry import make_transform, pose_error, rotation_from_vector
from sld_core.types import Camera, Detections, Localization, PoseEstimate, SldError

pytestmark = pytest.mark.ros

CAMERA = Camera(64, 48, 50.0, 50.0, 32.5, 24.5)
SECOND = 10**9
LOADED = threading.Event()  # slow scenes wait for it
T_BASE_CAMERA = make_transform(
    np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]), np.array([0.1, 0, 0.5])
)
T_MAP_ODOM = make_transform(
    rotation_from_vector(np.array([0, 0, 1.2])), np.array([4.0, -3.0, 0])
)  # what only the localizer can know


def T_odom_base(stamp_ns):
    """0.5 m/s and 0.3 rad/s."""
    s = (stamp_ns % (1000 * SECOND)) / SECOND
    return make_transform(
        rotation_from_vector(np.array([0, 0, 0.3 * s])), np.array([0.5 * s, 0, 0])
    )


class FakeLocalizer:
    """Finds the true camera pose, while `go` is set; the first pixel of an image says at which of
    `stamps` it was taken."""

    def __init__(self, path, device):
        if path.name == "broken.sld":
            raise SldError("broken.sld is damaged")
        if path.name.startswith("slow"):
            assert LOADED.wait(20)
        if path.name == "slow_broken.sld":
            raise SldError("slow_broken.sld is damaged")
        if path.name == "defect.sld":
            raise RuntimeError("no CUDA\nand no GPU")
        self.path = path
        self.scene = SimpleNamespace(
            name=path.stem, landmarks=range(500), metric=path.name != "unscaled.sld"
        )
        self.stamps, self.seen, self.reason = {}, [], ""
        self.go = threading.Event()
        self.go.set()

    def localize(self, image, camera):
        assert camera == CAMERA
        number = int(image[0, 0, 0])
        self.seen.append(number)
        assert self.go.wait(10)
        detections = Detections(np.arange(30), np.zeros((30, 2)), np.ones(30), np.ones(30))
        if self.reason:
            return Localization(None, self.reason, detections)
        T = T_MAP_ODOM @ T_odom_base(self.stamps[number]) @ T_BASE_CAMERA
        return Localization(
            PoseEstimate(T, np.diag([4e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-6]), np.arange(30) < 25, 0.8),
            "",
            detections,
        )


@pytest.fixture
def robot(ros):
    return Robot(ros)


class Robot:
    """Publishes images and TF, and collects what the localizer says."""

    def __init__(self, ros):
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, Image
        from sld.msg import LocalizerStatus
        from sld.srv import LoadScene
        from tf2_msgs.msg import TFMessage

        from sld_ros import tf
        from sld_ros.localizer_node import LocalizerNode

        self.ros, self.node, self.made = ros, ros.node("robot"), []
        self.localizer_node = ros.node(LocalizerNode(self.load))
        self.images = self.node.create_publisher(Image, "image", qos_profile_sensor_data)
        self.infos = self.node.create_publisher(CameraInfo, "camera_info", 10)
        self.tf, self.static = (
            tf.TransformBroadcaster(self.node),
            tf.StaticTransformBroadcaster(self.node),
        )
        self.listener = tf.TransformListener(self.node)
        self.poses, self.status, self.map_odom, self.diagnostics = [], [], [], []
        self.node.create_subscription(
            PoseWithCovarianceStamped, "/localizer/pose", self.poses.append, 100
        )
        self.node.create_subscription(LocalizerStatus, "/localizer/status", self.status.append, 100)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.node.create_subscription(TFMessage, "/tf", self.on_tf, 100)
        self.load_client = self.node.create_client(LoadScene, "/localizer/load_scene")
        ros.wait_for(
            lambda: (
                self.images.get_subscription_count()
                and self.infos.get_subscription_count()
                and self.node.count_publishers("/localizer/status")
                and self.node.count_publishers("/localizer/pose")
                and self.node.count_subscribers("/tf") == 3
            ),
            "connections",
        )

    def load(self, path, device):
        self.made.append(FakeLocalizer(path, device))
        return self.made[-1]

    def on_tf(self, message):
        self.map_odom += [t for t in message.transforms if t.child_frame_id == "odom"]

    def between_repeats(self):
        """A stamp between two transforms map->odom that are near enough to be interpolated, on a
        loaded machine too; None yet."""
        from sld_ros.conversions import ns_from_time

        stamps = [ns_from_time(t.header.stamp) for t in self.map_odom[1:]]
        return next(
            ((a + b) // 2 for a, b in zip(stamps, stamps[1:]) if b - a < MAX_GAP_S * SECOND), None
        )

    def load_scene(self, path):
        from sld.srv import LoadScene

        return self.ros.call(self.load_client, LoadScene.Request(path=path))

    def see(self, number, stamp_ns, odometry=True, size=(48, 64), scene=None):
        """Publish one image, its calibration and odometry around its stamp."""
        from sld_ros.conversions import camera_info_message, image_message, transform_message

        if scene or self.made:
            (scene or self.made[-1]).stamps[number] = stamp_ns
        self.static.send([transform_message(T_BASE_CAMERA, 0, "base_link", "camera")])
        if odometry:
            self.tf.send(
                [
                    transform_message(T_odom_base(s), s, "odom", "base_link")
                    for s in range(stamp_ns - SECOND // 10, stamp_ns + SECOND, SECOND // 100)
                ]
            )
        self.infos.publish(camera_info_message(CAMERA, stamp_ns, "camera"))
        time.sleep(0.1)
        self.images.publish(
            image_message(np.full((*size, 3), number, np.uint8), stamp_ns, "camera")
        )

    def answer_to(self, number, *arguments, **options):
        """The status that follows an image."""
        before = len(self.status)
        self.see(number, *arguments, **options)
        self.ros.wait_for(lambda: len(self.status) > before, "status")
        return self.status[before]


def test_pose_and_tf_at_the_image_stamp(robot):
    from sld_ros.conversions import matrix_from_pose, ns_from_time, transform_message

    assert robot.load_scene("room.sld").success
    stamp = time.time_ns()
    status = robot.answer_to(1, stamp)
    assert status.accepted and (status.reason, status.tf_error, status.scene) == ("", "", "room")
    assert (status.detections, status.inliers) == (
        30,
        25,
    ) and status.position_sigma == pytest.approx(0.02)
    assert 0 < status.processing_time <= status.latency < 2
    truth = T_MAP_ODOM @ T_odom_base(stamp) @ T_BASE_CAMERA
    pose = robot.ros.wait_for(lambda: robot.poses, "pose")[0]
    assert pose.header.frame_id == "map" and ns_from_time(pose.header.stamp) == stamp
    assert pose_error(matrix_from_pose(pose.pose.pose), truth)[0] < 1e-9 and pose.pose.covariance[
        0
    ] == pytest.approx(4e-4)
    robot.ros.wait_for(lambda: len(robot.map_odom) >= 5, "map->odom repeated")
    metres, radians = pose_error(robot.listener.lookup("map", "camera", stamp), truth)
    assert metres < 1e-9 and radians < 1e-9
    later = robot.ros.wait_for(
        robot.between_repeats, "two repeats close to each other"
    )  # between fixes map->odom holds
    robot.tf.send([transform_message(T_odom_base(later), later, "odom", "base_link")])
    assert (
        pose_error(
            robot.listener.lookup("map", "base_link", later, timeout_s=2),
            T_MAP_ODOM @ T_odom_base(later),
        )[0]
        < 1e-4
    )
    stamps = [ns_from_time(t.header.stamp) for t in robot.map_odom]
    assert (
        stamps[0] == stamp
        and stamps == sorted(set(stamps))
        and robot.map_odom[0].header.frame_id == "map"
    )
    robot.ros.wait_for(
        lambda: abs(ns_from_time(robot.map_odom[-1].header.stamp) - time.time_ns()) < 0.5 * SECOND,
        "map->odom of now",
    )


def test_an_old_recording_is_played_in_its_own_time(robot):
    from sld_ros.conversions import ns_from_time

    robot.load_scene("room.sld")
    stamp = 1_500_000_000 * SECOND
    assert robot.answer_to(1, stamp).tf_error == ""
    robot.ros.wait_for(lambda: len(robot.map_odom) >= 5, "map->odom repeated")
    assert all(0 <= ns_from_time(t.header.stamp) - stamp < 3 * SECOND for t in robot.map_odom)
    assert robot.answer_to(2, stamp - 5 * SECOND).tf_error == ""  # it starts again
    seen = len(robot.map_odom)
    robot.ros.wait_for(lambda: len(robot.map_odom) > seen + 3, "map->odom repeated again")
    assert ns_from_time(robot.map_odom[-1].header.stamp) < stamp


def test_nothing_on_tf_before_a_fix_and_the_reason_in_status(robot):
    assert "no scene is loaded" in robot.answer_to(1, time.time_ns()).reason
    robot.load_scene("room.sld")
    robot.made[-1].reason = "3 inliers, 10 needed"
    refused = robot.answer_to(1, time.time_ns())
    assert (
        not refused.accepted
        and refused.reason == "3 inliers, 10 needed"
        and refused.detections == 30
    )
    wrong_size = robot.answer_to(1, time.time_ns(), size=(24, 32))
    assert "32x24" in wrong_size.reason and "64x48" in wrong_size.reason
    time.sleep(0.3)
    assert not robot.map_odom and not robot.poses


def test_without_odometry_at_the_stamp_the_pose_is_published_but_no_tf(robot):
    robot.load_scene("room.sld")
    status = robot.answer_to(1, time.time_ns(), odometry=False)
    assert status.accepted and "no TF between odom and base_link" in status.tf_error
    robot.ros.wait_for(lambda: robot.poses, "pose")
    now = time.time_ns()
    assert robot.answer_to(2, now).tf_error == ""
    gap = robot.answer_to(3, now + 3 * SECOND, odometry=False)
    assert "2.010 s after the newest" in gap.tf_error


def test_a_burst_leaves_out_the_middle_but_never_the_newest(robot):
    from sld_ros.conversions import image_message

    robot.load_scene("room.sld")
    now, localizer = time.time_ns(), robot.made[-1]
    robot.answer_to(0, now)
    localizer.go.clear()
    for number in range(1, 8):
        localizer.stamps[number] = now
        robot.images.publish(image_message(np.full((48, 64, 3), number, np.uint8), now, "camera"))
        robot.ros.wait_for(lambda: 1 in localizer.seen, "first image of the burst")
    time.sleep(0.3)
    localizer.go.set()
    robot.ros.wait_for(lambda: len(robot.status) >= 3, "two more answers")
    assert localizer.seen == [0, 1, 7]


def test_a_scene_that_does_not_load_leaves_the_old_one(robot):
    first = robot.load_scene("room.sld")
    assert (first.success, first.scene, first.landmarks) == (True, "room", 500)
    broken = robot.load_scene("broken.sld")
    assert (broken.success, broken.error, broken.scene) == (False, "broken.sld is damaged", "room")
    assert robot.answer_to(1, time.time_ns()).scene == "room"


def test_images_and_tf_are_handled_while_a_scene_is_loaded(robot):
    from sld.srv import LoadScene

    LOADED.clear()
    assert robot.load_scene("room.sld").success
    answer = robot.load_client.call_async(LoadScene.Request(path="slow.sld"))
    time.sleep(0.2)
    status = robot.answer_to(1, time.time_ns(), scene=robot.made[0])
    assert (status.scene, status.accepted, status.tf_error) == ("room", True, "")
    second = robot.load_scene("hall.sld")
    assert (second.success, second.scene) == (False, "room")
    assert second.error == "another scene is being loaded; try again when it is"
    assert not answer.done()
    LOADED.set()
    robot.ros.wait_for(answer.done, "answer to the slow load")
    assert (answer.result().success, answer.result().scene) == (True, "slow")
    assert robot.answer_to(2, time.time_ns()).scene == "slow"
    assert robot.load_scene("hall.sld").success  # it may be asked again


def test_a_slow_load_that_fails_leaves_the_old_scene(robot):
    from sld.srv import LoadScene

    LOADED.clear()
    assert robot.load_scene("room.sld").success
    answer = robot.load_client.call_async(LoadScene.Request(path="slow_broken.sld"))
    time.sleep(0.1)
    LOADED.set()
    robot.ros.wait_for(answer.done, "answer to the slow load")
    assert answer.result().error == "slow_broken.sld is damaged"
    assert answer.result().scene == "room"
    assert robot.answer_to(1, time.time_ns()).scene == "room"


def test_a_scene_without_scale_is_refused(robot):
    """Its poses are in no metres: a robot must not drive by them."""
    assert robot.load_scene("room.sld").success
    refused = robot.load_scene("unscaled.sld")
    assert (refused.success, refused.scene) == (False, "room") and "\n" not in refused.error
    assert (
        refused.error.startswith("unscaled.sld: scene 'unscaled' is not metric")
        and "sld map metric --distance" in refused.error
    )
    robot.made.pop()  # the node has dropped it
    assert robot.answer_to(1, time.time_ns()).scene == "room"


def test_any_error_of_loading_is_answered_in_one_line(robot):
    assert robot.load_scene("~/room.sld").success and robot.made[0].path == Path.home() / "room.sld"
    answer = robot.load_scene("defect.sld")
    assert (answer.success, answer.error) == (
        False,
        "defect.sld cannot be loaded: RuntimeError: no CUDA and no GPU",
    )
    assert robot.answer_to(1, time.time_ns()).scene == "room"


def test_another_scene_takes_the_old_map_from_tf(robot):
    robot.load_scene("room.sld")
    robot.answer_to(1, time.time_ns())
    robot.load_scene("hall.sld")
    time.sleep(0.2)
    count = len(robot.map_odom)
    time.sleep(0.3)
    assert len(robot.map_odom) == count
    status = robot.answer_to(2, time.time_ns())
    assert status.scene == "hall" and len(robot.map_odom) > count


def test_a_new_calibration_replaces_the_old_one(robot):
    from sld_ros.conversions import camera_info_message

    robot.load_scene("room.sld")
    assert robot.answer_to(1, time.time_ns()).accepted
    uncalibrated = camera_info_message(CAMERA, 0, "camera")
    uncalibrated.k = [0.0] * 9
    before = len(robot.status)
    robot.infos.publish(uncalibrated)
    time.sleep(0.2)
    from sld_ros.conversions import image_message

    robot.images.publish(image_message(np.zeros((48, 64, 3), np.uint8), time.time_ns(), "camera"))
    robot.ros.wait_for(lambda: len(robot.status) > before, "status")
    assert "not calibrated" in robot.status[-1].reason
    assert robot.answer_to(1, time.time_ns()).accepted


def test_diagnostics_tell_the_state(robot):
    robot.load_scene("room.sld")
    robot.answer_to(1, time.time_ns())
    robot.diagnostics.clear()
    status = robot.ros.wait_for(lambda: robot.diagnostics, "diagnostics")[0].status[0]
    values = {v.key: v.value for v in status.values}
    assert status.name == "/localizer: images" and status.hardware_id == "/localizer"
    assert values["missing, by gaps in the stamps"] == "0"
    assert status.message == "localized" and (
        values["scene"],
        values["received"],
        values["accepted"],
        values["inliers"],
    ) == ("room", "1", "1", "25")


def test_a_scene_that_is_missing_at_start_stops_the_node_with_one_line(ros, tmp_path):
    node = ros.process("sld_ros.localizer_node", scene=tmp_path / "none.sld")
    _, text = node.communicate(timeout=60)
    assert (
        node.returncode == 1
        and "none.sld" in text.strip().splitlines()[-1]
        and "Traceback" not in text
    )


def test_a_scene_without_scale_at_start_stops_the_node_with_one_line(ros, tmp_path):
    import dataclasses

    from test_scene_file import make_scene

    from sld_core import scene_file

    scene_file.save(dataclasses.replace(make_scene(), metric=False), tmp_path / "a.sld")
    node = ros.process("sld_ros.localizer_node", scene=tmp_path / "a.sld")
    _, text = node.communicate(timeout=60)
    assert node.returncode == 1 and "Traceback" not in text
    assert "a.sld: scene 'kitchen' is not metric" in text.strip().splitlines()[-1]
