"""Every conversion between ROS messages and the types of the core. The half pixel between ROS
(pixel centres at integers) and the core (corner origin) is added and removed by
`Camera.from_opencv` and `camera_info_message` alone.

Where they are installed, cv_bridge converts images and tf_transformations quaternions; elsewhere,
and where cv_bridge errs, the core does."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, Transform, TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sld_core.camera.encodings import rgb_from_encoded, rgb_from_raw
from sld_core.camera.undistortion import Undistortion, undistortion
from sld_core.data.tf_tree import frame_name
from sld_core.geometry import make_transform, quaternion_from_rotation, rotation_from_quaternion
from sld_core.types import Camera, PoseEstimate, SldError

try:
    import cv_bridge
except Exception:  # not installed, or built for another numpy
    cv_bridge = None
try:
    import tf_transformations
except Exception:
    tf_transformations = None


def rgb_from_image(message: Image | CompressedImage) -> np.ndarray:
    """(height, width, 3) uint8 RGB; SldError names an encoding or size that cannot be read."""
    if isinstance(message, CompressedImage):
        # not by cv_bridge: it would turn a photograph as its orientation tag says
        return rgb_from_encoded(message.data)
    rgb = _rgb_by_cv_bridge(message) if cv_bridge else None
    if rgb is not None:
        return rgb
    return rgb_from_raw(
        message.data,
        message.encoding,
        message.width,
        message.height,
        message.step,
        bool(message.is_bigendian),
    )


def _rgb_by_cv_bridge(message: Image) -> np.ndarray | None:
    """None where cv_bridge fails or would give a wrong image."""
    bridge = cv_bridge.CvBridge()
    try:
        dtype, channels = bridge.encoding_to_dtype_with_channels(message.encoding)
        row_bytes = message.width * channels * np.dtype(dtype).itemsize
        # it shears images whose rows are padded by less than a pixel, and fails on those of the
        # other byte order under numpy 2
        empty = not message.height or not row_bytes
        if empty or message.step != row_bytes or message.is_bigendian:
            return None
        return bridge.imgmsg_to_cv2(message, "rgb8")
    except Exception:  # CvBridgeError, TypeError of numpy, cv2.error, KeyError under OpenCV 5
        return None


def undistortion_from_camera_info(info: CameraInfo, rectified: bool = False) -> Undistortion:
    """Pinhole camera and undistortion of a calibrated camera; `rectified` images (image_rect) are
    described by P alone."""
    roi = info.roi
    if (
        info.binning_x > 1
        or info.binning_y > 1
        or roi.x_offset
        or roi.y_offset
        or (roi.width, roi.height) not in ((0, 0), (info.width, info.height))
    ):
        raise SldError(
            f"camera_info with binning {info.binning_x}x{info.binning_y} and region of "
            f"interest {roi.width}x{roi.height} at "
            f"({roi.x_offset}, {roi.y_offset}): expected none; calibrate at the image size "
            "that is published"
        )
    if rectified:
        return undistortion(
            np.reshape(info.p, (3, 4))[:, :3], np.zeros(0), "", info.width, info.height
        )
    return undistortion(info.k, info.d, info.distortion_model, info.width, info.height)


def ns_from_time(stamp: Time) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


def time_message(stamp_ns: int) -> Time:
    return Time(sec=int(stamp_ns // 10**9), nanosec=int(stamp_ns % 10**9))


def matrix_from_transform(transform: Transform) -> np.ndarray:
    """4x4; a quaternion of length zero, or what is not finite, raises ValueError."""
    return _matrix(transform.rotation, transform.translation)


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """4x4; a quaternion of length zero, or what is not finite, raises ValueError."""
    return _matrix(pose.orientation, pose.position)


def transform_message(
    T_parent_child: np.ndarray, stamp_ns: int, parent: str, child: str
) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    _fill_header(message, stamp_ns, parent)
    _fill(message.transform.rotation, message.transform.translation, T_parent_child)
    return message


def pose_message(estimate: PoseEstimate, stamp_ns: int, frame_id: str) -> PoseWithCovarianceStamped:
    """The camera's pose in `frame_id`; the covariance has the same order and axes in both
    worlds."""
    message = PoseWithCovarianceStamped()
    _fill_header(message, stamp_ns, frame_name(frame_id))
    pose = message.pose.pose
    _fill(pose.orientation, pose.position, estimate.T_world_camera)
    message.pose.covariance = estimate.covariance_66.ravel().tolist()
    return message


def image_message(rgb_HW3: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    height, width, _ = rgb_HW3.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    _fill_header(message, stamp_ns, frame_id)
    # an ndarray would be checked value by value: 99 ms
    message.data = np.ascontiguousarray(rgb_HW3, np.uint8).tobytes()
    return message


def camera_info_message(camera: Camera, stamp_ns: int, frame_id: str) -> CameraInfo:
    message = CameraInfo(
        width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5
    )
    _fill_header(message, stamp_ns, frame_id)
    K = camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    message.k = K.ravel().tolist()
    message.r = np.eye(3).ravel().tolist()
    message.p = np.column_stack([K, np.zeros(3)]).ravel().tolist()
    return message


def _matrix(rotation, translation) -> np.ndarray:
    quaternion = [rotation.x, rotation.y, rotation.z, rotation.w]
    R = rotation_from_quaternion(quaternion)  # ValueError where that is no rotation
    if tf_transformations:
        R = tf_transformations.quaternion_matrix(quaternion)[:3, :3]
    t = np.array([translation.x, translation.y, translation.z])
    if not np.isfinite(t).all():
        raise ValueError(f"translation {t.tolist()}: expected finite numbers")
    return make_transform(R, t)


def _fill_header(message, stamp_ns: int, frame_id: str) -> None:
    message.header.stamp = time_message(stamp_ns)
    message.header.frame_id = frame_id


def _fill(rotation, translation, T: np.ndarray) -> None:
    if tf_transformations:
        quaternion = tf_transformations.quaternion_from_matrix(T)
    else:
        quaternion = quaternion_from_rotation(T[:3, :3])
    rotation.x, rotation.y, rotation.z, rotation.w = map(float, quaternion)
    translation.x, translation.y, translation.z = T[:3, 3].tolist()
