"""Node `trainer`: action ~/train_scene teaches a scene from a recording or a map, in a process of
its own."""

from __future__ import annotations

if __name__ == "__main__":
    from sld_ros.run import trainer

    trainer()

import math
import os
import re
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from sld.action import TrainScene

from sld_core import runtime, scene_file
from sld_core.commands.common import check_writable
from sld_core.types import SldError
from sld_ros.parameters import declare, parameter
from sld_ros.run import one_line
from sld_ros.teach_process import COMMAND, TeachProcess, TeachRequest

Result = TrainScene.Result
POLL_S = 0.1  # how soon a cancel is seen
THREADS = 4  # for a goal, its cancel and more goals, on a single core too


@dataclass(frozen=True)
class Parameters:
    output_folder: str = parameter("scenes", "Folder that receives the scene files")
    device: str = parameter(
        "", "Torch device to train on: cpu, cuda, cuda:0, ...; empty: the default of the core"
    )


def start() -> tuple[TrainerNode, MultiThreadedExecutor]:
    return TrainerNode(), MultiThreadedExecutor(THREADS)


class TrainerNode(Node):
    """`command` is the program that teaches and `check` raises SldError for a bad scene file (tests
    give others)."""

    def __init__(
        self, command: tuple[str, ...] = COMMAND, check: Callable[[Path], object] = scene_file.load
    ):
        super().__init__("trainer")
        self._settings = declare(self, Parameters)
        self._command = command
        self._check = check
        self._busy = threading.Lock()
        self._ending = threading.Event()
        self._server = ActionServer(
            self,
            TrainScene,
            "~/train_scene",
            self._execute,
            callback_group=ReentrantCallbackGroup(),
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )

    def destroy_node(self) -> None:
        self._ending.set()
        with self._busy:  # until the goal has ended
            self._server.destroy()
        super().destroy_node()

    def _execute(self, goal: ServerGoalHandle) -> Result:
        if not self._busy.acquire(blocking=False):
            goal.abort()
            return Result(
                error=Result.BUSY, text="another scene is being taught; wait for it or cancel it"
            )
        try:
            result = self._result_of(goal)
            self.get_logger().info(f"scene {goal.request.scene!r}: {result.text}")
            if result.error == Result.SUCCESS:
                goal.succeed()
            elif result.error == Result.CANCELED and goal.is_cancel_requested:
                goal.canceled()
            else:
                goal.abort()
            return result
        finally:
            self._busy.release()

    def _result_of(self, goal: ServerGoalHandle) -> Result:
        try:
            return self._teach(goal)
        except SldError as error:
            return Result(error=Result.BAD_INPUT, text=str(error))
        except Exception as error:  # a defect or a full disk: who sent the goal has to hear of it
            self.get_logger().error(f"scene {goal.request.scene!r}: {traceback.format_exc()}")
            return Result(error=Result.FAILED, text=one_line(error))

    def _teach(self, goal: ServerGoalHandle) -> Result:
        """The old scene file stays until the new one passed its check."""
        final = self._scene_path(goal.request.scene)
        partial = final.with_name(f".{final.stem}.partial.sld")
        with runtime.temporary_folder() as work:
            request = self._teach_request(goal.request, partial, work)
            teaching = TeachProcess(
                request, lambda line: self.get_logger().info(line), self._command
            )
            try:
                event = self._follow(teaching, goal)
                if event is None:
                    return Result(error=Result.CANCELED, text="canceled")
                if event["event"] == "error":
                    return Result(
                        error=Result.BAD_INPUT if event["kind"] == "bad_input" else Result.FAILED,
                        text=event["text"],
                    )
                return self._accept(event, partial, final)
            finally:
                teaching.stop()
                partial.unlink(missing_ok=True)

    def _follow(self, teaching: TeachProcess, goal: ServerGoalHandle) -> dict | None:
        """Feedback until the process is done; its last event, or None when the goal was canceled or
        the node ends."""
        while not (goal.is_cancel_requested or self._ending.is_set()):
            event = teaching.next_event(POLL_S)
            if event is None:
                continue
            if event["event"] != "progress":
                return event
            goal.publish_feedback(
                TrainScene.Feedback(
                    stage=event["stage"],
                    fraction=float(event["fraction"]),
                    loss=_or_nan(event.get("loss")),
                    seconds_left=_or_nan(event.get("seconds_left")),
                )
            )
        return None

    def _accept(self, event: dict, partial: Path, final: Path) -> Result:
        """Put the new scene file in its place once it passed its check."""
        try:
            self._check(partial)
        except SldError as error:
            return Result(error=Result.FAILED, text=f"the new scene file is not usable: {error}")
        os.replace(partial, final)
        return _success(event, final)

    def _scene_path(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", name):
            raise SldError(
                f"scene name {name[:120]!r}: expected letters, digits, '_' and '-' (not in "
                "front), 100 at most"
            )
        path = Path(self._settings.output_folder).expanduser().absolute() / f"{name}.sld"
        check_writable(path, "output_folder:")
        return path

    def _teach_request(self, request: TrainScene.Goal, output: Path, work: Path) -> TeachRequest:
        if not request.source:
            raise SldError("source is empty; expected a recording, a map or a folder of frames")
        return TeachRequest(
            Path(request.source).expanduser().absolute(),
            request.frame_list,
            output,
            work,
            request.scene,
            request.head,
            request.landmarks,
            request.seed,
            self._settings.device,
        )


def _success(event: dict, path: Path) -> Result:
    validation = event.get("validation") or {}
    return Result(
        error=Result.SUCCESS,
        text=f"taught in {event['teach_s']:.1f} s",
        path=str(path),
        teach_time=float(event["teach_s"]),
        frames=event["frames"],
        landmarks=event["landmarks"],
        validation_frames=validation.get("frames", 0),
        validation_recall_5cm_5deg=_or_nan(validation.get("recall_5cm_5deg")),
        validation_median_position=_or_nan(validation.get("median_m")),
        validation_median_rotation=_or_nan(validation.get("median_rad")),
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
