"""Node `localizer`: image + camera_info -> ~/pose, ~/status, TF map->odom."""

from __future__ import annotations

if __name__ == "__main__":
    from sld_ros.run import localizer

    localizer()

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from sld.msg import LocalizerStatus
from sld.srv import LoadScene

from sld_core.camera.undistortion import Undistortion
from sld_core.data.tf_tree import TransformError
from sld_core.localizer import Localizer
from sld_core.types import Detections, Localization, SldError
from sld_ros.conversions import (
    ns_from_time,
    pose_message,
    rgb_from_image,
    undistortion_from_camera_info,
)
from sld_ros.latest import Latest
from sld_ros.map_odom import MapOdom
from sld_ros.parameters import declare, parameter
from sld_ros.run import one_line
from sld_ros.stamp_gaps import StampGaps

# best effort hears reliable publishers too
NEWEST_ONLY = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
END_S = 1.0  # for the image being worked on when the node ends


@dataclass(frozen=True)
class Parameters:
    scene: str = parameter("", "Scene file (.sld) to load at start; empty: wait for ~/load_scene")
    device: str = parameter("cpu", "Torch device: cpu, cuda, cuda:0, ...")
    compressed: bool = parameter(False, "Subscribe to sensor_msgs/CompressedImage instead of Image")
    rectified: bool = parameter(
        False, "The images are rectified (image_rect): use P of camera_info and no distortion"
    )
    map_frame: str = parameter(
        "map", "Frame of the scene's coordinates; parent of odom_frame on TF"
    )
    odom_frame: str = parameter("odom", "Frame that odometry is given in")
    base_frame: str = parameter("base_link", "Frame of the robot that odometry moves")
    camera_frame: str = parameter(
        "", "Optical frame of the camera; empty: the frame_id of the images"
    )
    publish_tf: bool = parameter(True, "Publish map_frame -> odom_frame on TF")
    tf_rate: float = parameter(
        20.0,
        "Rate at which map_frame -> odom_frame is repeated after the first fix, Hz",
        1.0,
        200.0,
    )
    transform_tolerance: float = parameter(
        0.1, "How far the repeated transform is dated into the future, s", 0.0, 5.0
    )
    tf_timeout: float = parameter(
        0.2, "How long to wait for odometry at the stamp of an image, s", 0.0, 5.0
    )


def start() -> tuple[LocalizerNode, SingleThreadedExecutor]:
    return LocalizerNode(), SingleThreadedExecutor()


class LocalizerNode(Node):
    """Images arrive on the executor's thread, and the newest is localized on a thread of its own;
    scenes are loaded on another, so that TF never waits.

    `load` makes a localizer from a path and a device (tests give a fake one)."""

    def __init__(self, load: Callable[[Path, str], Localizer] = Localizer.load):
        super().__init__("localizer")
        self._settings = p = declare(self, Parameters)
        self._load = load
        self._localizer: Localizer | None = None
        # held while the scene changes and while a result is published, so that none of an old
        # scene follows
        self._scene_lock = threading.Lock()
        self._loading = threading.Lock()
        self._map_odom = MapOdom(
            self, p.map_frame, p.odom_frame, p.base_frame, p.transform_tolerance
        )
        if p.scene:
            self._load_scene(p.scene)
        self._gaps = StampGaps()
        self._calibration: tuple[CameraInfo, Undistortion | SldError] | None = None
        self._images: Latest[tuple[Image | CompressedImage, int]] = Latest()
        self._counts = {"received": 0, "processed": 0, "accepted": 0}
        self._last = LocalizerStatus(reason="no image yet")

        self._pose = self.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._status = self.create_publisher(LocalizerStatus, "~/status", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, NEWEST_ONLY)
        self.create_subscription(
            CompressedImage if p.compressed else Image, "image", self._on_image, NEWEST_ONLY
        )
        self.create_service(
            LoadScene,
            "~/load_scene",
            self._on_load_scene,
            callback_group=ReentrantCallbackGroup(),  # other callbacks go on while it waits
        )
        self.create_timer(1.0, self._publish_diagnostics)
        self.create_timer(1.0 / p.tf_rate, self._map_odom.repeat)
        self._worker = threading.Thread(target=self._work, name="localize", daemon=True)
        self._worker.start()

    def destroy_node(self) -> None:
        self._images.close()
        self._worker.join(END_S)
        super().destroy_node()

    def _on_camera_info(self, info: CameraInfo) -> None:
        if self._calibration is not None and _same_calibration(self._calibration[0], info):
            return
        try:
            self._calibration = info, undistortion_from_camera_info(info, self._settings.rectified)
        except SldError as error:
            self._calibration = info, error
            self.get_logger().error(f"camera_info: {error}")

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._counts["received"] += 1
        self._gaps.add(ns_from_time(message.header.stamp))
        self._images.put((message, self.get_clock().now().nanoseconds))

    async def _on_load_scene(
        self, request: LoadScene.Request, response: LoadScene.Response
    ) -> LoadScene.Response:
        """Answers once another thread has loaded the scene; the executor goes on meanwhile."""
        if not self._loading.acquire(blocking=False):
            return self._answer(response, "another scene is being loaded; try again when it is")
        loaded = Future()

        def load() -> None:
            error = self._try_to_load(request.path)
            self._loading.release()
            loaded.set_result(error)
            if self.executor is not None:
                self.executor.wake()

        threading.Thread(target=load, name="load", daemon=True).start()
        return self._answer(response, await loaded)

    def _try_to_load(self, path: str) -> str:
        """Why the scene could not be loaded, in one line; empty once it is in use."""
        try:
            self._load_scene(path)
            return ""
        except SldError as error:
            self.get_logger().error(f"load_scene: {error}")
            return str(error)
        except Exception as error:  # a defect, or a device that failed: the scene before goes on
            self.get_logger().error(f"load_scene: {traceback.format_exc()}")
            return f"{path} cannot be loaded: {one_line(error)}"

    def _answer(self, response: LoadScene.Response, error: str) -> LoadScene.Response:
        response.success = not error
        response.error = error
        localizer = self._localizer
        if localizer is not None:
            response.scene = localizer.scene.name
            response.landmarks = len(localizer.scene.landmarks)
        return response

    def _load_scene(self, path: str) -> None:
        localizer = self._load(Path(path).expanduser(), self._settings.device)
        if not localizer.scene.metric:
            raise SldError(
                f"{path}: scene {localizer.scene.name!r} is not metric: its poses are not in "
                "metres, and a robot would drive by them; give its map a scale (sld map metric "
                "--distance ... | --tag-size ..., or depth images or odometry beside the images), "
                "go on with sld map all, and teach it again"
            )
        with self._scene_lock:
            self._localizer = localizer
            self._map_odom.reset()
        self.get_logger().info(
            f"scene {localizer.scene.name!r}: {len(localizer.scene.landmarks)} landmarks"
        )

    def _work(self) -> None:
        while (item := self._images.take()) is not None:
            try:
                self._process(*item)
            except Exception:  # a defect must not end localization in silence
                if not self._images.closed:  # else its publishers are gone
                    self.get_logger().error(f"image not processed: {traceback.format_exc()}")

    def _process(self, image: Image | CompressedImage, received_ns: int) -> None:
        start = time.monotonic()
        localizer = self._localizer
        result = self._localize(localizer, image)
        status = status_message(result)
        status.header = image.header
        status.scene = localizer.scene.name if localizer else ""
        status.processing_time = time.monotonic() - start
        with self._scene_lock:
            if localizer is self._localizer:
                self._publish(result, status, received_ns)

    def _localize(
        self, localizer: Localizer | None, image: Image | CompressedImage
    ) -> Localization:
        if localizer is None:
            return _refused("no scene is loaded; call ~/load_scene")
        if self._calibration is None:
            return _refused(f"no camera_info yet on {self.resolve_topic_name('camera_info')}")
        _, undistort = self._calibration
        if isinstance(undistort, SldError):
            return _refused(f"camera_info: {undistort}")
        try:
            return localizer.localize(undistort(rgb_from_image(image)), undistort.camera)
        except SldError as error:
            return _refused(str(error))

    def _publish(self, result: Localization, status: LocalizerStatus, received_ns: int) -> None:
        """TF first, so that whoever receives a pose finds it on TF."""
        p = self._settings
        stamp_ns = ns_from_time(status.header.stamp)
        if result.pose is not None:
            if p.publish_tf:
                try:
                    camera = p.camera_frame or status.header.frame_id
                    self._map_odom.update(
                        result.pose.T_world_camera, camera, stamp_ns, received_ns, p.tf_timeout
                    )
                except TransformError as error:
                    status.tf_error = str(error)
            self._pose.publish(pose_message(result.pose, stamp_ns, p.map_frame))
        status.latency = (self.get_clock().now().nanoseconds - stamp_ns) / 1e9
        self._status.publish(status)
        self._counts["processed"] += 1
        if result.accepted:
            self._counts["accepted"] += 1
        self._last = status

    def _publish_diagnostics(self) -> None:
        counts = {
            **self._counts,
            "replaced by a newer image": self._images.replaced,
            "missing, by gaps in the stamps": self._gaps.missing,
        }
        status = diagnostic(self.get_fully_qualified_name(), self._last, counts)
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def status_message(result: Localization) -> LocalizerStatus:
    """What a localization found; header, scene and times are left to the caller."""
    status = LocalizerStatus(
        accepted=result.accepted, reason=result.reason, detections=len(result.detections)
    )
    if result.pose is not None:
        status.inliers = int(np.count_nonzero(result.pose.inlier_K))
        status.reprojection_px = float(result.pose.reprojection_px)
        status.position_sigma = result.pose.position_sigma_m
        status.rotation_sigma = result.pose.rotation_sigma_rad
    return status


def diagnostic(node: str, last: LocalizerStatus, counts: dict[str, int]) -> DiagnosticStatus:
    """The state of the node (its fully qualified name) in one line, from the last image and the
    counts of images since the start."""
    level = DiagnosticStatus.OK if last.accepted and not last.tf_error else DiagnosticStatus.WARN
    values = {
        "scene": last.scene,
        **counts,
        "inliers": last.inliers,
        "processing time (ms)": round(1000 * last.processing_time),
        "latency (ms)": round(1000 * last.latency),
    }
    return DiagnosticStatus(
        level=level,
        name=f"{node}: images",
        message=last.reason or last.tf_error or "localized",
        hardware_id=node,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _refused(reason: str) -> Localization:
    """An image that was not worked on."""
    return Localization(
        None, reason, Detections(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    )


def _same_calibration(a: CameraInfo, b: CameraInfo) -> bool:
    names = ("width", "height", "distortion_model", "d", "k", "p", "binning_x", "binning_y", "roi")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
