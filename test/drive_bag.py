"""The kitchen drive of the shared data as the bag that a robot would have recorded.

PYTHONPATH=.:test python -m drive_bag OUTPUT [--no-odometry] [--sqlite3] [--every N]
                                      [--depth] [--tag METRES]
"""

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
from bag_messages import (
    SECOND,
    START,
    T_BASE_CAMERA,
    camera_info,
    compressed_image,
    odometry,
    raw_image,
    tf,
    transform,
    write_rosbags,
)
from rosbags.rosbag2 import StoragePlugin

from sld_core.data.pose_files import read_pose
from sld_core.geometry import invert, make_transform, mean_up

DRIVE = (
    Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    / "data/kitchen/drive"
)
RATE_HZ = 30
# README of the shared data: f=526.94, c=(320, 240) from the corner, so half a pixel less in ROS;
# radial k1 alone
K, D = (526.94, 0, 319.5, 0, 526.94, 239.5, 0, 0, 1), (-0.0254, 0.0, 0.0, 0.0, 0.0)


def write_drive_bag(
    folder: Path,
    drive: Path = DRIVE,
    with_odometry: bool = True,
    storage: str = "mcap",
    last: int | None = None,
    every: int = 1,
    with_depth: bool = False,
    tag_m: float = 0.0,
) -> Path:
    """A bag `folder` (must not exist) of every so many of the first `last` images (None: all):
    JPEGs as they are, CameraInfo with distortion, and odometry with a static TF to the camera: the
    tracker's poses in a frame with z up (see `odom_from_tracker`).

    With every=4 there can be depth images, and a tag of `tag_m` metres on a wall: both come from
    kitchen/frames."""
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
    write_rosbags(
        Path(folder), _messages(Path(drive), with_odometry, last, every, with_depth, tag_m), plugin
    )
    return Path(folder)


def odom_from_tracker(drive: Path = DRIVE) -> np.ndarray:
    """T_odom_tracker (4x4): z along the mean upwards direction of the images, origin where the
    camera started."""
    poses = np.array([read_pose(path) for path in sorted(Path(drive).glob("*.pose.txt"))])
    up, first = mean_up(poses), poses[0]
    x = first[:3, 2] - up * (up @ first[:3, 2])  # the way the camera looks at the start, levelled
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(up, x), up])
    return make_transform(R, -R @ first[:3, 3])


def _messages(
    drive: Path, with_odometry: bool, last: int | None, every: int, with_depth: bool, tag_m: float
):
    T_odom_tracker = odom_from_tracker(drive)
    yield "/tf_static", START, tf(transform(START, "base_link", "camera", T_BASE_CAMERA))
    for i, path in list(enumerate(sorted(drive.glob("*.color.jpg"))[:last]))[::every]:
        stamp, name = START + i * SECOND // RATE_HZ, path.name.replace(".color.jpg", "")
        if with_odometry:
            T_tracker_camera = read_pose(path.with_name(f"{name}.pose.txt"))
            yield (
                "/odom",
                stamp,
                odometry(stamp, T_odom_tracker @ T_tracker_camera @ invert(T_BASE_CAMERA)),
            )
        yield "/camera/camera_info", stamp, camera_info(stamp, D, 640, 480, K)
        data = path.read_bytes()
        if tag_m:
            data = cv2.imencode(
                ".jpg", with_tag(cv2.imread(str(path)), name, tag_m), [cv2.IMWRITE_JPEG_QUALITY, 95]
            )[1].tobytes()
        yield "/camera/image_raw/compressed", stamp, compressed_image(stamp, data)
        if with_depth:
            yield "/camera/depth", stamp, raw_image(stamp, "16UC1", depth_of(name))


# depth and a tag, from kitchen/frames -------------------------------------------------------------

FRAMES = (
    DRIVE.parent / "frames"
)  # every 4th frame without distortion, with depth and with poses good to millimetres
F_FRAMES, C_FRAMES = 526.8777, (320.0, 240.0)  # camera-intrinsics.txt there
TAG_FRAME, TAG_PIXEL = (
    "frame-000240",
    (180, 228),
)  # shows a flat, vertical spot that 82 of 120 images see: the tag is put there
TAG_CELLS, CELL_PX = 10, 12  # an AprilTag 36h11 has 8 cells, and a white one on each side


def rays() -> np.ndarray:
    """Where each pixel of the camera looks (480, 640, 2), on the plane z = 1."""
    index = np.stack(np.meshgrid(np.arange(640.0), np.arange(480.0)), -1).reshape(-1, 1, 2)
    return cv2.undistortPoints(index, np.reshape(K, (3, 3)), np.array(D)).reshape(480, 640, 2)


def depth_of(name: str) -> np.ndarray:
    """The depth image (uint16 millimetres) of a frame, as registered to the image that the camera
    gave."""
    depth = cv2.imread(str(FRAMES / f"{name}.depth.png"), cv2.IMREAD_UNCHANGED)
    at = (rays() * F_FRAMES + C_FRAMES).astype(np.float32)
    return cv2.remap(depth, at, None, cv2.INTER_NEAREST)


def with_tag(image: np.ndarray, name: str, size_m: float) -> np.ndarray:
    """The image as if an AprilTag 36h11 with a black square of `size_m` hung there; what stands
    before it hides it."""
    T, T_tag = read_pose(FRAMES / f"{name}.pose.txt"), tag_pose(size_m)
    ray = (
        np.dstack([rays(), np.ones((480, 640))]) @ (T_tag[:3, :3].T @ T[:3, :3]).T
    )  # in axes of the tag, z away from us
    origin = T_tag[:3, :3].T @ (T[:3, 3] - T_tag[:3, 3])
    z = -origin[2] / ray[..., 2]  # depth where the ray meets the tag's plane
    xy = origin[:2] + ray[..., :2] * z[..., None]
    texture = cv2.aruco.generateImageMarker(
        cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11), 0, 8 * CELL_PX
    )
    texture = cv2.copyMakeBorder(texture, *4 * [CELL_PX], cv2.BORDER_CONSTANT, value=255)
    at = (xy / size_m * 8 + TAG_CELLS / 2) * CELL_PX - 0.5
    painted = cv2.remap(texture, at.astype(np.float32), None, cv2.INTER_LINEAR)
    measured = depth_of(name) / 1000
    shown = (
        (z > 0)
        & ((at > 0) & (at < TAG_CELLS * CELL_PX - 1)).all(2)
        & ((measured == 0) | (measured > z - 0.1))
    )
    return np.where(shown[..., None], painted[..., None], image)


def tag_pose(size_m: float) -> np.ndarray:
    """T_world_tag: x right, y down, z into the wall, as the plane through the depths around
    TAG_PIXEL of TAG_FRAME lies."""
    depth = cv2.imread(str(FRAMES / f"{TAG_FRAME}.depth.png"), cv2.IMREAD_UNCHANGED) / 1000
    T, (u, v) = read_pose(FRAMES / f"{TAG_FRAME}.pose.txt"), TAG_PIXEL
    half = int(size_m * 0.7 * F_FRAMES / depth[v, u])
    y, x = np.mgrid[v - half : v + half + 1, u - half : u + half + 1]
    near = depth[y, x]
    points = np.dstack(
        [(x - C_FRAMES[0]) / F_FRAMES * near, (y - C_FRAMES[1]) / F_FRAMES * near, near]
    )[near > 0]
    centre = np.median(points, 0)
    normal = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][2]
    normal *= np.sign(normal[2])
    right = np.cross([0, 1.0, 0], normal)
    right /= np.linalg.norm(right)
    return T @ make_transform(np.stack([right, np.cross(normal, right), normal], 1), centre)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--no-odometry", action="store_true")
    parser.add_argument("--sqlite3", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--depth", action="store_true")
    parser.add_argument("--tag", type=float, default=0.0)
    args = parser.parse_args()
    write_drive_bag(
        args.output,
        with_odometry=not args.no_odometry,
        storage="sqlite3" if args.sqlite3 else "mcap",
        every=args.every,
        with_depth=args.depth,
        tag_m=args.tag,
    )
