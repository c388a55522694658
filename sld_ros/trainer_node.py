"""Node `trainer`: action ~/train_scene teaches a scene from a recording, in a process of its
own."""

from __future__ import annotations

import math
import os
import re
import tempfile
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

from sld_core import scene_file
from sld_core.types import SldError
from sld_ros.parameters import declare, parameter
from sld_ros.run import one_line, run
from sld_ros.teach_process import COMMAND, TeachProcess, TeachRequest

Result = TrainScene.Result
POLL_S = 0.1  # how soon a cancel is seen


@dataclass(frozen=True)
class Parameters:
    output_folder: str = parameter("scenes", "Folder that receives the scene files")
    device: str = parameter(
        "", "Torch device to train on: cpu, cuda, cuda:0, ...; empty: the default of the core"
    )


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
        self._teaching: TeachProcess | None = None
        self._server = ActionServer(
            self,
            TrainScene,
            "~/train_scene",
            self._execute,
            callback_group=ReentrantCallbackGroup(),
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )

    def destroy_node(self) -> None:
        if self._teaching is not None:
            self._teaching.stop()
        self._server.destroy()
        super().destroy_node()

    def _execute(self, goal: ServerGoalHandle) -> Result:
        if not self._busy.acquire(blocking=False):
            goal.abort()
            return Result(
                error=Result.BUSY, text="another scene is being taught; wait for it or cancel it"
            )
        try:
            result = self._teach(goal)
        except SldError as error:
            result = Result(error=Result.BAD_INPUT, text=str(error))
        except Exception as error:  # a defect or a full disk: who sent the goal has to hear of it
            self.get_logger().error(f"scene {goal.request.scene!r}: {traceback.format_exc()}")
            result = Result(error=Result.FAILED, text=one_line(error))
        finally:
            self._busy.release()
        if result.error == Result.SUCCESS:
            goal.succeed()
        elif result.error == Result.CANCELED:
            goal.canceled()
        else:
            goal.abort()
        self.get_logger().info(f"scene {goal.request.scene!r}: {result.text}")
        return result

    def _teach(self, goal: ServerGoalHandle) -> Result:
        """The old scene file stays until the new one passed its check."""
        final = self._scene_path(goal.request.scene)
        partial = final.with_name(f".{final.stem}.partial.sld")
        with tempfile.TemporaryDirectory(prefix="sld-", ignore_cleanup_errors=True) as work:
            request = self._teach_request(goal.request, partial, Path(work))
            self._teaching = TeachProcess(
                request, lambda line: self.get_logger().info(line), self._command
            )
            try:
                event = self._follow(goal)
                if event is None:
                    return Result(error=Result.CANCELED, text="canceled")
                if event["event"] == "error":
                    return Result(
                        error=Result.BAD_INPUT if event["kind"] == "bad_input" else Result.FAILED,
                        text=event["text"],
                    )
                return self._accept(event, partial, final)
            finally:
                self._teaching.stop()
                self._teaching = None
                partial.unlink(missing_ok=True)

    def _follow(self, goal: ServerGoalHandle) -> dict | None:
        """Feedback until the process is done; its last event, or None when the goal was
        canceled."""
        while not goal.is_cancel_requested:
            event = self._teaching.next_event(POLL_S)
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
        folder = Path(self._settings.output_folder).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SldError(
                f"output_folder {folder}: cannot be created ({error.strerror})"
            ) from None
        return folder / f"{name}.sld"

    def _teach_request(self, request: TrainScene.Goal, output: Path, work: Path) -> TeachRequest:
        source = Path(request.source).expanduser()
        if not request.source or not source.exists():
            raise SldError(f"source {request.source!r}: no such recording or folder of frames")
        return TeachRequest(
            source,
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


def make_executor() -> MultiThreadedExecutor:
    """Threads for a goal, its cancel and more goals, on a single core too: by default it has one
    for each core."""
    return MultiThreadedExecutor(4)


def main() -> None:
    run(TrainerNode, make_executor)


if __name__ == "__main__":
    main()
