"""The trainer node with a fake program to teach and a fake check."""

if __name__ == "__main__":
    from sld_ros.run import run

    run("fake_trainer")

import sys
from pathlib import Path

from rclpy.executors import MultiThreadedExecutor

from sld_core.types import SldError
from sld_ros.trainer_node import THREADS, TrainerNode


def check(path):
    if path.read_text() == "damaged":
        raise SldError("the scene file is damaged")


def start():
    program = (sys.executable, str(Path(__file__).with_name("fake_teach.py")))
    return TrainerNode(program, check), MultiThreadedExecutor(THREADS)
