"""The localizer node with a fake localizer that works on its first image for a minute."""

if __name__ == "__main__":
    from sld_ros.run import run

    run("fake_localizer")

import time
from types import SimpleNamespace

from rclpy.executors import SingleThreadedExecutor

from sld_ros.localizer_node import LocalizerNode


class SlowLocalizer:
    def __init__(self, path, device):
        self.scene = SimpleNamespace(name=path.stem, landmarks=range(5), metric=True)

    def localize(self, image, camera):
        print("working", flush=True)
        time.sleep(60)


def start():
    return LocalizerNode(SlowLocalizer), SingleThreadedExecutor()
