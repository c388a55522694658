"""ROS messages and bags for tests: what drivers, odometry and TF would have written."""

import numpy as np
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from sld_core.geometry import make_transform, quaternion_from_rotation
from sld_ros.mcap_writer import McapWriter

SECOND = 10**9
START = 1_700_000_000 * SECOND
STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
# the camera looks along the robot's x axis
T_BASE_CAMERA = make_transform(
    np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]), np.array([0.1, 0, 0.5])
)


def message(type_name, *values):
    return TYPES[type_name](*values)


def header(stamp_ns, frame_id):
    return message(
        "std_msgs/msg/Header",
        message("builtin_interfaces/msg/Time", stamp_ns // SECOND, stamp_ns % SECOND),
        frame_id,
    )


def transform(stamp_ns, parent, child, T):
    vector = message("geometry_msgs/msg/Vector3", *map(float, T[:3, 3]))
    quaternion = message("geometry_msgs/msg/Quaternion", *quaternion_of(T))
    return message(
        "geometry_msgs/msg/TransformStamped",
        header(stamp_ns, parent),
        child,
        message("geometry_msgs/msg/Transform", vector, quaternion),
    )


def quaternion_of(T):
    return map(float, quaternion_from_rotation(T[:3, :3]))


def image(stamp_ns, value=100, width=64, height=48):
    return message(
        "sensor_msgs/msg/Image",
        header(stamp_ns, "camera"),
        height,
        width,
        "rgb8",
        0,
        3 * width,
        np.full(3 * width * height, value, np.uint8),
    )


def raw_image(stamp_ns, encoding, pixels, frame="camera"):
    """An image of any encoding from an array (height, width, ...)."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
    return message(
        "sensor_msgs/msg/Image",
        header(stamp_ns, frame),
        height,
        width,
        encoding,
        0,
        len(data) // height,
        data,
    )


def compressed_image(stamp_ns, data, kind="jpeg", frame="camera"):
    return message(
        "sensor_msgs/msg/CompressedImage",
        header(stamp_ns, frame),
        kind,
        np.frombuffer(data, np.uint8),
    )


def camera_info(stamp_ns, D=(0.0,) * 5, width=64, height=48, K=(50.0, 0, 32, 0, 50, 24, 0, 0, 1)):
    K = np.array(K, float)
    roi = message("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    return message(
        "sensor_msgs/msg/CameraInfo",
        header(stamp_ns, "camera"),
        height,
        width,
        "plumb_bob",
        np.array(D),
        K,
        np.eye(3).ravel(),
        np.array([45.0, 0, 32, 0, 0, 45, 24, 0, 0, 0, 1, 0]),
        0,
        0,
        roi,
    )


def odometry(stamp_ns, T):
    point = message("geometry_msgs/msg/Point", *map(float, T[:3, 3]))
    pose = message(
        "geometry_msgs/msg/Pose", point, message("geometry_msgs/msg/Quaternion", *quaternion_of(T))
    )
    zero = message("geometry_msgs/msg/Vector3", 0.0, 0.0, 0.0)
    return message(
        "nav_msgs/msg/Odometry",
        header(stamp_ns, "odom"),
        "base_link",
        message("geometry_msgs/msg/PoseWithCovariance", pose, np.zeros(36)),
        message(
            "geometry_msgs/msg/TwistWithCovariance",
            message("geometry_msgs/msg/Twist", zero, zero),
            np.zeros(36),
        ),
    )


def tf(*transforms):
    return message("tf2_msgs/msg/TFMessage", list(transforms))


def write_mcap(path, drive):
    """By our writer; returns the file."""
    path.mkdir()
    writer, channels = McapWriter(path / f"{path.name}_0.mcap"), {}
    for topic, stamp, content in drive:
        if topic not in channels:
            definition, _ = STORE.generate_msgdef(content.__msgtype__, ros_version=2)
            channels[topic] = writer.add_channel(topic, content.__msgtype__, definition, "")
        writer.write(
            channels[topic], stamp, bytes(STORE.serialize_cdr(content, content.__msgtype__))
        )
        if stamp % SECOND == 0:
            writer.flush()
    writer.close()
    return path / f"{path.name}_0.mcap"


def write_rosbags(path, drive, storage, version=9):
    with Writer(path, version=version, storage_plugin=storage) as writer:
        connections = {}
        for topic, stamp, content in drive:
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, content.__msgtype__, typestore=STORE
                )
            writer.write(
                connections[topic], stamp, STORE.serialize_cdr(content, content.__msgtype__)
            )
