"""Messages to types and back."""

import numpy as np
import pytest

from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.types import Camera, PoseEstimate, SldError

pytestmark = pytest.mark.ros

STAMP = 1_700_000_000_123_456_789
T = make_transform(rotation_from_vector(np.array([0.3, -0.2, 2.9])), np.array([1.0, -2.0, 3.0]))


def test_image_round_trip():
    from sld_ros.conversions import image_message, ns_from_time, rgb_from_image

    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    message = image_message(rgb[:, ::2], STAMP, "camera")  # not contiguous
    assert (rgb_from_image(message) == rgb[:, ::2]).all()
    assert ns_from_time(message.header.stamp) == STAMP and message.header.frame_id == "camera"


def test_camera_info_round_trip_moves_the_half_pixel_there_and_back():
    from sld_ros.conversions import camera_info_message, undistortion_from_camera_info

    camera = Camera(640, 480, 500.0, 510.0, 320.5, 240.5)
    info = camera_info_message(camera, STAMP, "camera")
    assert (info.k[2], info.k[5]) == (320.0, 240.0) and (info.p[2], info.p[6]) == (320.0, 240.0)
    assert undistortion_from_camera_info(info).camera == camera


def test_rectified_images_are_described_by_P():
    from sld_ros.conversions import camera_info_message, undistortion_from_camera_info

    info = camera_info_message(Camera(640, 480, 500.0, 500.0, 320.5, 240.5), STAMP, "camera")
    info.d = [0.1, 0.0, 0.0, 0.0, 0.0]
    info.p[0] = info.p[5] = 450.0
    assert undistortion_from_camera_info(info).maps is not None
    rectified = undistortion_from_camera_info(info, rectified=True)
    assert rectified.maps is None and rectified.camera.fx == 450


def test_unusable_camera_infos_say_what_to_do():
    from sensor_msgs.msg import CameraInfo

    from sld_ros.conversions import camera_info_message, undistortion_from_camera_info

    with pytest.raises(SldError, match="not calibrated.*cameracalibrator"):
        undistortion_from_camera_info(CameraInfo(width=640, height=480))
    for change in ({"binning_x": 2}, {"roi": {"width": 320, "height": 240, "x_offset": 5}}):
        info = camera_info_message(Camera(640, 480, 500.0, 500.0, 320.5, 240.5), STAMP, "camera")
        info.binning_x = change.get("binning_x", 0)
        for name, value in change.get("roi", {}).items():
            setattr(info.roi, name, value)
        with pytest.raises(SldError, match="binning.*region of interest"):
            undistortion_from_camera_info(info)


def test_transform_round_trip():
    from sld_ros.conversions import matrix_from_transform, ns_from_time, transform_message

    message = transform_message(T, STAMP, "map", "odom")
    np.testing.assert_allclose(matrix_from_transform(message.transform), T, atol=1e-12)
    assert (
        message.header.frame_id,
        message.child_frame_id,
        ns_from_time(message.header.stamp),
    ) == ("map", "odom", STAMP)


def test_pose_keeps_the_order_of_its_covariance():
    from sld_ros.conversions import matrix_from_pose, pose_message

    covariance = np.arange(36.0).reshape(6, 6)
    message = pose_message(PoseEstimate(T, covariance, np.ones(3, bool), 0.5), STAMP, "map")
    np.testing.assert_allclose(matrix_from_pose(message.pose.pose), T, atol=1e-12)
    assert (
        message.pose.covariance[6 * 1 + 3] == covariance[1, 3] and message.header.frame_id == "map"
    )


def test_a_zero_quaternion_is_refused():
    from geometry_msgs.msg import Transform

    from sld_ros.conversions import matrix_from_transform

    message = Transform()
    message.rotation.w = 0.0
    with pytest.raises(ValueError, match="quaternion"):
        matrix_from_transform(message)


@pytest.mark.parametrize("where, name", [("translation", "x"), ("rotation", "w")])
def test_a_transform_that_is_not_finite_is_refused(where, name):
    from sld_ros.conversions import matrix_from_transform, transform_message

    message = transform_message(np.eye(4), 0, "odom", "base_link")
    setattr(getattr(message.transform, where), name, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        matrix_from_transform(message.transform)
