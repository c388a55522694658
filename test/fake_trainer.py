"""The trainer node with a fake program to teach and a fake check."""

import sys
from pathlib import Path

from sld_core.types import SldError
from sld_ros.run import run
from sld_ros.trainer_node import TrainerNode, make_executor


def check(path):
    if path.read_text() == "damaged":
        raise SldError("the scene file is damaged")


run(
    lambda: TrainerNode((sys.executable, str(Path(__file__).with_name("fake_teach.py"))), check),
    make_executor,
)
