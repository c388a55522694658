"""A Reconstruction as a folder in COLMAP's layout (cameras, images, points3D, rigs, frames)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sld_core import geometry
from sld_core.optional import pycolmap
from sld_core.types import Camera, Reconstruction, SldError


def write_model(folder: Path, reconstruction: Reconstruction, images: Path) -> None:
    """Write the binary model; an earlier one in `folder` is replaced. All frames have poses, and
    their images are named relative to `images`. Stamps, sources and sessions are lost."""
    r, model = reconstruction, pycolmap.Reconstruction()
    cameras = dict.fromkeys(f.camera for f in r.frames)
    number_of = {camera: number for number, camera in enumerate(cameras, start=1)}
    for camera, number in number_of.items():
        model.add_camera_with_trivial_rig(_pinhole(camera, number))
    slot_M = np.zeros(len(r.obs_frame_M), int)  # of each observation among those of its image
    for i, frame in enumerate(r.frames):
        own = np.flatnonzero(r.obs_frame_M == i)
        slot_M[own] = np.arange(len(own))
        image = pycolmap.Image(
            name=_relative_name(frame.image_path, images),
            camera_id=number_of[frame.camera],
            image_id=i + 1,
            keypoints=np.asarray(r.obs_xy_M2, float)[own].reshape(-1, 2),
        )
        T_camera_world = geometry.invert(frame.T_world_camera)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world[:3]))
    _add_points(model, r, slot_M)
    folder.mkdir(parents=True, exist_ok=True)
    model.write_binary(folder)


def _pinhole(camera: Camera, number: int):
    return pycolmap.Camera(
        camera_id=number,
        model="PINHOLE",
        width=camera.width,
        height=camera.height,
        params=[camera.fx, camera.fy, camera.cx, camera.cy],
    )


def _relative_name(path: Path, root: Path) -> str:
    if not path.absolute().is_relative_to(root.absolute()):
        raise SldError(
            f"{path}: lies outside of {root}; expected all images of a model in one folder"
        )
    return path.absolute().relative_to(root.absolute()).as_posix()


def _add_points(model, r: Reconstruction, slot_M: np.ndarray) -> None:
    grey = np.full(3, 128, np.uint8)
    starts = np.searchsorted(r.obs_point_M, np.arange(len(r.points_N3) + 1))
    for k, xyz in enumerate(r.points_N3):
        track = pycolmap.Track()
        for m in range(starts[k], starts[k + 1]):
            track.add_element(int(r.obs_frame_M[m]) + 1, int(slot_M[m]))
        number = model.add_point3D(np.asarray(xyz, float), track, grey)
        model.point3D(number).error = float(r.error_px_N[k])
