"""Images of a calibrated camera with lens distortion -> images of a pinhole camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sld_core.types import Camera, SldError

# distortion model of sensor_msgs/CameraInfo -> how many coefficients it may have
COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True)
class Undistortion:
    """`camera` is the pinhole camera of the undistorted image; `maps` are for cv2.remap, None
    where there is nothing to do."""

    camera: Camera
    maps: tuple[np.ndarray, np.ndarray] | None

    def __call__(self, image_HW3: np.ndarray) -> np.ndarray:
        """The undistorted image, of the same size."""
        if image_HW3.shape[:2] != (self.camera.height, self.camera.width):
            raise SldError(
                f"image is {image_HW3.shape[1]}x{image_HW3.shape[0]} but the camera "
                f"calibration is for {self.camera.width}x{self.camera.height}"
            )
        if self.maps is None:
            return image_HW3
        return cv2.remap(image_HW3, *self.maps, cv2.INTER_LINEAR)

    def nearest(self, depth_HW: np.ndarray) -> np.ndarray:
        """The undistorted depth image, of any size, by its nearest values: none is interpolated
        between two surfaces."""
        if self.maps is None:
            return depth_HW
        # fraction: y and x in 1/32 pixel; cv2's INTER_NEAREST would ignore it, not round
        index, fraction = self.maps
        part = np.stack([fraction & 31, fraction >> 5], -1).astype(np.float32) / 32
        xy = index.astype(np.float32) + 0.5 + part
        height, width = depth_HW.shape
        if (width, height) != (self.camera.width, self.camera.height):
            xy = cv2.resize(xy, (width, height), interpolation=cv2.INTER_LINEAR)
            xy *= np.float32([width / self.camera.width, height / self.camera.height])
        columns, rows = np.floor(xy).astype(int).transpose(2, 0, 1)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        nearest = depth_HW[rows.clip(0, height - 1), columns.clip(0, width - 1)]
        return np.where(inside, nearest, 0).astype(depth_HW.dtype)


def undistortion(K: np.ndarray, D: np.ndarray, model: str, width: int, height: int) -> Undistortion:
    """From a calibration in the ROS and OpenCV convention (pixel centres at integers).

    The pinhole camera keeps K, so the middle of the image keeps its resolution; what a wide lens
    sees beyond the image is cut off."""
    K, D = np.asarray(K, float).reshape(3, 3), np.asarray(D, float).ravel()
    if not K.any():
        raise SldError(
            "the camera is not calibrated (K is all zero): calibrate it, for example with "
            "`ros2 run camera_calibration cameracalibrator`, and let the driver publish the result"
        )
    if not np.isfinite(D).all():
        raise SldError(f"distortion coefficients {D.tolist()}: expected finite numbers")
    camera = Camera.from_opencv(width, height, K)
    if not D.any():
        return Undistortion(camera, None)
    if len(D) not in COEFFICIENTS.get(model, ()):
        known = ", ".join(
            f"{name} ({' or '.join(map(str, counts))})" for name, counts in COEFFICIENTS.items()
        )
        raise SldError(
            f"distortion model {model!r} with {len(D)} coefficients: expected one of {known}"
        )
    make_maps = (
        cv2.fisheye.initUndistortRectifyMap
        if model == "equidistant"
        else cv2.initUndistortRectifyMap
    )
    return Undistortion(camera, make_maps(K, D, np.eye(3), K, (width, height), cv2.CV_16SC2))
