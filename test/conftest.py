"""Shared fixtures. ROS tests are skipped, with the reason, where ROS or the built interfaces are
missing."""

import importlib.util
import os
import random
import subprocess
import sys
import threading
import time

import pytest

# a domain of its own for each test process, chosen before rclpy reads it
os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 100)))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def pytest_collection_modifyitems(items):
    missing = [
        name for name in ("rclpy", "sld", "tf2_msgs") if importlib.util.find_spec(name) is None
    ]
    if missing:
        for item in items:
            if item.get_closest_marker("ros"):
                item.add_marker(
                    pytest.mark.skip(
                        reason=f"{', '.join(missing)} cannot be imported; run `make ros`"
                    )
                )


@pytest.fixture
def ros():
    """Nodes that spin on a thread of their own, and nodes as processes."""
    ros = _Ros()
    yield ros
    ros.close()


class _Ros:
    def __init__(self):
        import rclpy
        from rclpy.executors import MultiThreadedExecutor

        rclpy.init()
        self._executor = MultiThreadedExecutor(4)
        self._nodes, self._processes = [], []
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()

    def node(self, name_or_node):
        """Spin this node, or a new one of this name."""
        from rclpy.node import Node

        node = Node(name_or_node) if isinstance(name_or_node, str) else name_or_node
        self._nodes.append(node)
        self._executor.add_node(node)
        return node

    def process(self, *command, **parameters):
        """A node as a process: a module of sld_ros or a script, and its ROS parameters."""
        start = [command[0]] if command[0].endswith(".py") else ["-m", command[0]]
        values = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        process = subprocess.Popen(
            [sys.executable, *start, *command[1:], "--ros-args", *values],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def wait_for(self, condition, what, timeout_s=10.0):
        """The first true value of `condition()`; fails after the time-out."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
            time.sleep(0.01)
        return value

    def call(self, client, request, timeout_s=10.0):
        """The response of a service."""
        assert client.wait_for_service(timeout_s), f"no service {client.srv_name}"
        future = client.call_async(request)
        self.wait_for(future.done, f"response of {client.srv_name}", timeout_s)
        return future.result()

    def close(self):
        import rclpy

        for process in self._processes:
            process.kill()
            process.communicate()
        self._executor.shutdown()
        self._thread.join(10)
        for node in self._nodes:
            node.destroy_node()
        rclpy.try_shutdown()
