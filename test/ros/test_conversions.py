"""Messages to types and back."""

import itertools

import numpy as np
import pytest

from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.types import Camera, PoseEstimate, SldError

pytestmark = pytest.mark.ros

BAYER = [f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")]
YUV = ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"]
STAMP = 1_700_000_000_123_456_789
T = make_transform(rotation_from_vector(np.array([0.3, -0.2, 2.9])), np.array([1.0, -2.0, 3.0]))


def test_image_round_trip():
    from sld_ros.conversions import image_message, ns_from_time, rgb_from_image

    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    message = image_message(rgb[:, ::2], STAMP, "camera")  # not contiguous
    assert (rgb_from_image(message) == rgb[:, ::2]).all()
    assert ns_from_time(message.header.stamp) == STAMP and message.header.frame_id == "camera"


def picture(encoding, padding=0, big_endian=False, width=8, height=6):
    """An image message of random pixels in this encoding."""
    from sensor_msgs.msg import Image

    sizes = {"mono8": 1, "mono16": 2, "rgba8": 4, "bgra8": 4, "rgb8": 3, "bgr8": 3}
    sizes |= {"16UC1": 2, "32FC1": 4}
    size = sizes.get(encoding, 2 if encoding in YUV else 1)
    step = width * size + padding
    data = np.random.default_rng(0).integers(0, 256, (height, step), np.uint8)
    return Image(
        width=width,
        height=height,
        encoding=encoding,
        step=step,
        is_bigendian=big_endian,
        data=data.tobytes(),
    )


@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", *BAYER, *YUV]
)
def test_images_with_and_without_cv_bridge_are_the_same(monkeypatch, encoding):
    from sld_ros import conversions

    if conversions.cv_bridge is None:
        pytest.skip("cv_bridge is not installed")
    for padding, big_endian in itertools.product((0, 1, 2, 8), (False, True)):
        message = picture(encoding, padding, big_endian)
        with_it = conversions.rgb_from_image(message)
        by_cv_bridge = conversions._rgb_by_cv_bridge(message)
        assert (by_cv_bridge is None) == (padding > 0 or big_endian)
        with monkeypatch.context() as context:
            context.setattr(conversions, "cv_bridge", None)
            without = conversions.rgb_from_image(message)
        assert with_it.shape == without.shape == (6, 8, 3) and with_it.dtype == np.uint8
        # 16 bits become 8 by rounding there, by the upper byte here
        assert np.abs(with_it.astype(int) - without).max() <= (encoding == "mono16")


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "nonsense", ""])
def test_images_that_are_no_colours_are_refused_with_and_without_cv_bridge(monkeypatch, encoding):
    from sld_ros import conversions

    for present in (conversions.cv_bridge, None):
        monkeypatch.setattr(conversions, "cv_bridge", present)
        with pytest.raises(SldError, match="image encoding"):
            conversions.rgb_from_image(picture(encoding))


@pytest.mark.parametrize("change", [{"width": 0, "step": 0}, {"height": 0}, {"height": 7}])
def test_an_image_of_another_size_than_it_says_is_refused(change):
    from sld_ros.conversions import rgb_from_image

    message = picture("rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(SldError, match="expected a step of at least"):
        rgb_from_image(message)


@pytest.mark.parametrize("failure", [KeyError(32), AttributeError("newbyteorder")])
def test_where_cv_bridge_fails_the_core_converts(monkeypatch, failure):
    """KeyError: under OpenCV 5. AttributeError: big-endian images under numpy 2."""
    from types import SimpleNamespace

    from sld_ros import conversions

    class Bridge:
        def encoding_to_dtype_with_channels(self, encoding):
            return "uint8", 3

        def imgmsg_to_cv2(self, message, encoding):
            raise failure

    monkeypatch.setattr(conversions, "cv_bridge", SimpleNamespace(CvBridge=Bridge))
    message = picture("rgb8")
    expected = np.frombuffer(message.data, np.uint8).reshape(6, 8, 3)
    assert (conversions.rgb_from_image(message) == expected).all()


@pytest.mark.parametrize(
    "vector", [(0, 0, 0), (0.3, -0.2, 2.9), (np.pi, 0, 0), (0, 0, -1e-9), (1.2, -1.2, 2.5)]
)
def test_quaternions_with_and_without_tf_transformations_are_the_same(monkeypatch, vector):
    from sld_ros import conversions

    if conversions.tf_transformations is None:
        pytest.skip("tf_transformations is not installed")
    T = make_transform(rotation_from_vector(np.array(vector, float)), np.array([1.0, -2.0, 3.0]))
    found = {}
    for present in (conversions.tf_transformations, None):
        monkeypatch.setattr(conversions, "tf_transformations", present)
        message = conversions.transform_message(T, STAMP, "map", "odom").transform
        found[present] = message.rotation
        np.testing.assert_allclose(conversions.matrix_from_transform(message), T, atol=1e-9)
    a, b = ([q.x, q.y, q.z, q.w] for q in found.values())
    assert np.dot(a, b) ** 2 == pytest.approx(1, abs=1e-12)  # q and -q are the same rotation


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
    message = pose_message(PoseEstimate(T, covariance, np.ones(3, bool), 0.5), STAMP, "/map")
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
