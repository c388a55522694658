"""A corner of the rendered room, small enough to be mapped in seconds: poses, images, and
photographs on disk."""

from functools import cache

import cv2
import numpy as np
import pycolmap

from sld_core.evaluation.alignment import align_poses
from sld_core.geometry import make_transform
from sld_core.synthetic import Room
from sld_core.synthetic.drive import looking
from sld_core.types import Camera

CAMERA = Camera(320, 240, 300.0, 300.0, 160.5, 120.5)
WIDE = Camera(400, 300, 300.0, 300.0, 200.5, 150.5)


def sway(n, opposite=False):
    """Poses of a camera that sways in front of one wall, by a metre, and keeps looking at it; or at
    the wall behind."""
    s = 2 * np.pi * np.arange(n) / n
    yaw, pitch, roll = (
        0.3 + np.pi * opposite + 0.35 * np.sin(s),
        -0.1 + 0.15 * np.cos(2 * s),
        0.1 * np.sin(3 * s),
    )
    sign = -1 if opposite else 1
    position = np.stack(
        [sign * (-1.2 + 0.5 * np.cos(s)), 0.9 * np.sin(s), 1.2 + 0.3 * np.sin(2 * s)], 1
    )
    return [make_transform(looking(*angles), p) for *angles, p in zip(yaw, pitch, roll, position)]


@cache
def room():
    return Room.make(0)


def shoot(T_world_camera, number=0, k=0.0):
    """RGB image and depth in millimetres of CAMERA; with `k` through a lens with radial distortion
    (COLMAP's SIMPLE_RADIAL)."""
    image, depth = room().render(
        WIDE if k else CAMERA, T_world_camera, np.random.default_rng(number)
    )
    depth_mm = np.round(depth * 1000).astype(np.uint16)
    if not k:
        return image, depth_mm
    x, y = _seen_through(k)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR), cv2.remap(depth_mm, x, y, cv2.INTER_NEAREST)


def _seen_through(k):
    """Where in a WIDE image (pixel indices) each pixel of CAMERA with distortion looks."""
    lens = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=320, height=240, params=[CAMERA.fx, CAMERA.cx, CAMERA.cy, k]
    )
    x, y = np.meshgrid(np.arange(320) + 0.5, np.arange(240) + 0.5)
    ray = lens.cam_from_img(np.stack([x.ravel(), y.ravel()], 1))
    at = np.asarray(ray) * WIDE.fx + [WIDE.cx - 0.5, WIDE.cy - 0.5]
    return tuple(np.float32(at[:, i].reshape(240, 320)) for i in (0, 1))


def write_photos(folder, poses, with_depth=False, with_intrinsics=True, k=0.0):
    """img-NNN.jpg of all poses, and depth and camera-intrinsics.txt beside, as asked."""
    folder.mkdir(parents=True, exist_ok=True)
    if with_intrinsics:
        np.savetxt(folder / "camera-intrinsics.txt", [[300, 0, 160], [0, 300, 120], [0, 0, 1]])
    for i, T in enumerate(poses):
        image, depth_mm = shoot(T, i, k)
        write(folder / f"img-{i:03d}.jpg", image[..., ::-1])
        if with_depth:
            write(folder / f"img-{i:03d}.depth.png", depth_mm)
    return folder


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = (
        [cv2.IMWRITE_JPEG_QUALITY, 95]
        if path.suffix == ".jpg"
        else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())


def against(frames, poses):
    """The similarity between frames that were mapped and the poses their images were rendered from;
    by number."""
    return align_poses(
        np.array([f.T_world_camera for f in frames]),
        np.array([poses[int(f.name.split("-")[1])] for f in frames]),
    )
