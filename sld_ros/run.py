"""The life of a node's process. Nothing heavy is imported here before signals are taken care of."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from sld_core import runtime

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node


def localizer() -> NoReturn:
    run("sld_ros.localizer_node")


def recorder() -> NoReturn:
    # what waits for the disk is still written; launch repeats itself after 5 s
    run("sld_ros.recorder_node", grace_s=4.0)


def trainer() -> NoReturn:
    run("sld_ros.trainer_node")


def run(module_name: str, grace_s: float = runtime.GRACE_S) -> NoReturn:
    """Run the node that `start()` of a module makes, until SIGINT or SIGTERM ends it with exit
    status 0; a user's mistake at the start is one line and exit status 1.

    rclpy's own signal handlers are left out: they shut ROS down under the node's feet, and a second
    signal would interrupt the cleaning up."""
    importing = True
    ended = threading.Event()

    def end(_number: int) -> None:
        if importing:
            os._exit(0)  # nothing is open yet
        ended.set()
        time.sleep(grace_s)
        runtime.leave(0)

    # launch ends nodes by SIGINT, even where a script started it with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runtime.on_stop(end)
    runtime.prepare()
    module = importlib.import_module(module_name)
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from sld_core.types import SldError

    importing = False
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    status = 0
    try:
        node, executor = module.start()
        _spin(node, executor, ended)
    except SldError as error:
        status = 1
        sys.stderr.write(f"error: {error}\n")
    except Exception:
        status = 1
        traceback.print_exc()
    rclpy.try_shutdown()
    runtime.leave(status)


def _spin(node: Node, executor: Executor, ended: threading.Event) -> None:
    """Spin on another thread until `ended` is set; raises what a callback raised."""
    failures: list[Exception] = []

    def spin() -> None:
        try:
            executor.spin()
        except Exception as error:
            if not ended.is_set():  # afterwards, callbacks meet what is destroyed already
                failures.append(error)
        ended.set()

    forward_core_logs(node)
    executor.add_node(node)
    thread = threading.Thread(target=spin, name="spin", daemon=True)
    thread.start()
    ended.wait()
    node.destroy_node()
    executor.shutdown()
    thread.join()
    if failures:
        raise failures[0]


class RosHandler(logging.Handler):
    """Forwards Python log records to a node's logger."""

    def __init__(self, node: Node):
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # rclpy remembers one severity for each calling line, so each has its own
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


def forward_core_logs(node: Node) -> None:
    """Send what sld_core logs to the node's logger."""
    core = logging.getLogger("sld_core")
    core.handlers = [RosHandler(node)]
    core.setLevel(logging.INFO)


def one_line(error: Exception) -> str:
    """An unforeseen error in one line, for an answer; its trace belongs in the log."""
    return " ".join(f"{type(error).__name__}: {error}".split())
