"""The kitchen drive of the shared data as the bag that a robot would have recorded.

    PYTHONPATH=.:test python -m drive_bag OUTPUT [--no-odometry] [--sqlite3]
"""
import argparse
import os
from pathlib import Path

import numpy as np
from bag_messages import SECOND, START, T_BASE_CAMERA, camera_info, compressed_image, odometry, tf, transform, write_rosbags
from rosbags.rosbag2 import StoragePlugin

from sld_core.geometry import invert, make_transform, mean_up
from sld_core.mapping.frames import read_pose

DRIVE = Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data/kitchen/drive"
RATE_HZ = 30
# README of the shared data: f=526.94, c=(320, 240) from the corner, so half a pixel less in ROS; radial k1 alone
K, D = (526.94, 0, 319.5, 0, 526.94, 239.5, 0, 0, 1), (-0.0254, 0.0, 0.0, 0.0, 0.0)


def write_drive_bag(folder: Path, drive: Path = DRIVE, with_odometry: bool = True, storage: str = "mcap", last: int | None = None) -> Path:
    """A bag `folder` (must not exist) of the first `last` images (None: all): JPEGs as they are, CameraInfo with distortion,
    and odometry with a static TF to the camera: the tracker's poses in a frame with z up (see `odom_from_tracker`)."""
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
    write_rosbags(Path(folder), _messages(Path(drive), with_odometry, last), plugin)
    return Path(folder)


def odom_from_tracker(drive: Path = DRIVE) -> np.ndarray:
    """T_odom_tracker (4x4): z along the mean upwards direction of the images, origin where the camera started."""
    poses = np.array([read_pose(path) for path in sorted(Path(drive).glob("*.pose.txt"))])
    up, first = mean_up(poses), poses[0]
    x = first[:3, 2] - up * (up @ first[:3, 2])  # the way the camera looks at the start, levelled
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(up, x), up])
    return make_transform(R, -R @ first[:3, 3])


def _messages(drive: Path, with_odometry: bool, last: int | None):
    T_odom_tracker = odom_from_tracker(drive)
    yield "/tf_static", START, tf(transform(START, "base_link", "camera", T_BASE_CAMERA))
    for i, path in enumerate(sorted(drive.glob("*.color.jpg"))[:last]):
        stamp = START + i * SECOND // RATE_HZ
        if with_odometry:
            T_tracker_camera = read_pose(path.with_name(path.name.replace(".color.jpg", ".pose.txt")))
            yield "/odom", stamp, odometry(stamp, T_odom_tracker @ T_tracker_camera @ invert(T_BASE_CAMERA))
        yield "/camera/camera_info", stamp, camera_info(stamp, D, 640, 480, K)
        yield "/camera/image_raw/compressed", stamp, compressed_image(stamp, path.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--no-odometry", action="store_true")
    parser.add_argument("--sqlite3", action="store_true")
    args = parser.parse_args()
    write_drive_bag(args.output, with_odometry=not args.no_odometry, storage="sqlite3" if args.sqlite3 else "mcap")
