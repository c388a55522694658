"""What every node's main does: logs of the core to ROS, one clear line for a user's mistake, a
clean end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from sld_core import runtime
from sld_core.types import SldError


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


def one_line(error: Exception) -> str:
    """An unforeseen error in one line, for an answer; its trace belongs in the log."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def forward_core_logs(node: Node) -> None:
    """Send what sld_core logs to the node's logger."""
    core = logging.getLogger("sld_core")
    core.handlers = [RosHandler(node)]
    core.setLevel(logging.INFO)


def run(
    make_node: Callable[[], Node], make_executor: Callable[[], Executor] = SingleThreadedExecutor
) -> None:
    """Run a node until it is interrupted; a user's mistake at start is one line and exit status
    1."""
    runtime.prepare()
    rclpy.init()
    node = None
    try:
        node = make_node()
        forward_core_logs(node)
        executor = make_executor()
        executor.add_node(node)
        executor.spin()
    except SldError as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
