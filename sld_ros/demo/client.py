"""The demo's client of the nodes: record, teach, load a scene, and what the localizer answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.action import ActionClient
from rclpy.node import Node
from sld.action import TrainScene
from sld.msg import LocalizerStatus
from sld.srv import LoadScene, StartRecording, StopRecording

from sld_core.data.tf_tree import TransformError
from sld_core.types import SldError
from sld_ros.conversions import matrix_from_pose, ns_from_time
from sld_ros.demo.processes import NodeProcesses
from sld_ros.tf import TransformListener

START_S = 60.0  # a node's imports on a busy machine
SERVICE_S = 30.0
ARRIVAL_S = 1.0  # for a message that was sent before one that is here already


@dataclass(frozen=True)
class Answer:
    """What the localizer answered to one image: `T_pose` from ~/pose and `T_tf` from TF are camera
    to map (4x4), or None where there was no fix."""

    status: LocalizerStatus
    T_pose: np.ndarray | None
    T_tf: np.ndarray | None


class Client(Node):
    """Every call waits with a time-out, and raises SldError in the node's own words when it fails.
    The executor of this node must spin in another thread."""

    def __init__(self, processes: NodeProcesses):
        super().__init__("client")
        self._processes = processes
        self._tf = TransformListener(self)
        self._train = ActionClient(self, TrainScene, "/trainer/train_scene")
        self._statuses: dict[int, LocalizerStatus] = {}
        self._poses: dict[int, np.ndarray] = {}
        self.create_subscription(LocalizerStatus, "/localizer/status", self._on_status, 50)
        self.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._on_pose, 50)

    def start_recording(self, name: str) -> str:
        """Returns the bag's folder."""
        return self._call(StartRecording, "/recorder/start", StartRecording.Request(name=name)).path

    def stop_recording(self) -> StopRecording.Response:
        return self._call(StopRecording, "/recorder/stop", StopRecording.Request())

    def load_scene(self, path: str) -> LoadScene.Response:
        return self._call(LoadScene, "/localizer/load_scene", LoadScene.Request(path=path))

    def teach(
        self,
        goal: TrainScene.Goal,
        on_feedback: Callable[[TrainScene.Feedback], None],
        timeout_s: float,
    ) -> TrainScene.Result:
        """Teach a scene and wait for it; an interrupt cancels the goal."""
        self._wait(self._train.server_is_ready, START_S, "the trainer's action")
        handle = self._result(
            self._train.send_goal_async(goal, lambda message: on_feedback(message.feedback)),
            SERVICE_S,
            "accepting the goal",
        )
        if not handle.accepted:
            raise SldError("the trainer rejected the goal")
        try:
            answer = self._result(handle.get_result_async(), timeout_s, "teaching the scene")
        except KeyboardInterrupt:
            handle.cancel_goal_async()
            raise
        if answer.status != GoalStatus.STATUS_SUCCEEDED:
            raise SldError(f"teaching failed (error {answer.result.error}): {answer.result.text}")
        return answer.result

    def answer_for(self, stamp_ns: int, timeout_s: float) -> Answer:
        """The answer to the image of this stamp."""
        self._wait(
            lambda: stamp_ns in self._statuses, timeout_s, "a status of the localizer for an image"
        )
        status = self._statuses.pop(stamp_ns)
        if not status.accepted:
            return Answer(status, None, None)
        self._wait(lambda: stamp_ns in self._poses, ARRIVAL_S, "the ~/pose of an accepted image")
        return Answer(status, self._poses.pop(stamp_ns), self._camera_on_tf(status, stamp_ns))

    def knows_map(self) -> bool:
        """Whether map and odom are connected on TF."""
        try:
            self._tf.lookup("map", "odom", None)
        except TransformError:
            return False
        return True

    def _camera_on_tf(self, status: LocalizerStatus, stamp_ns: int) -> np.ndarray | None:
        """map -> odom as received, composed with odometry and mount at the stamp of the image."""
        if status.tf_error:
            return None
        try:
            return self._tf.lookup("map", status.header.frame_id, stamp_ns, ARRIVAL_S)
        except TransformError as error:
            self.get_logger().warning(f"no map -> camera on TF after an accepted fix: {error}")
            return None

    def _call(self, kind: type, name: str, request: Any):
        client = self.create_client(kind, name)
        self._wait(client.service_is_ready, START_S, f"service {name}")
        response = self._result(client.call_async(request), SERVICE_S, f"an answer of {name}")
        self.destroy_client(client)
        if not response.success:
            raise SldError(f"{name}: {response.error}")
        return response

    def _result(self, future, timeout_s: float, what: str):
        self._wait(future.done, timeout_s, what)
        return future.result()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        self._processes.wait_until(condition, timeout_s, f"waiting for {what}")

    def _on_status(self, message: LocalizerStatus) -> None:
        self._statuses[ns_from_time(message.header.stamp)] = message

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        self._poses[ns_from_time(message.header.stamp)] = matrix_from_pose(message.pose.pose)
