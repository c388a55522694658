"""sld on a machine that lacks packages: what does not need them works, the rest says what to do."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKED = ("pycolmap", "poselib", "rclpy")
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run(program, *args):
    """What a Python process without these packages prints."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + program, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


def test_every_module_of_the_core_imports():
    lines = run("""
import importlib, pkgutil, sld_core
for module in pkgutil.walk_packages(sld_core.__path__, "sld_core."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sorted(name for name in sys.modules if name in ("pycolmap", "poselib", "rclpy")))
""")
    assert lines == ["[]"]


def test_a_labelled_scene_is_taught_and_a_query_says_what_is_missing(tmp_path):
    lines = run(
        """
from pathlib import Path
import cv2, numpy as np
from sld_core.config.scene import SceneConfig
from sld_core.config.settings import override
from sld_core.localizer import Localizer
from sld_core.training.run import Run
from sld_core.training.teach import SceneOutput, teach_scene_data
from sld_core.types import Camera, Frame, Landmarks, SceneData, SldError

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
camera = Camera(96, 64, 80.0, 80.0, 48.0, 32.0)
for i in range(4):
    cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (64, 96, 3), np.uint8))
frames = tuple(Frame(str(i), folder / f"{i}.png", camera, np.eye(4)) for i in range(4))
xyz_L3 = np.column_stack([rng.uniform(-1, 1, (30, 2)) * [1.1, 0.7], np.full(30, 2.0)])
data = SceneData(
    frames, ("train",) * 4, Landmarks(xyz_L3, np.arange(30)), np.ones((4, 30), np.uint8), True
)
settings = ["head.kind=prototype", "validation_fraction=0", "backbone_weights=random"]
output = SceneOutput(folder / "toy.sld", "toy")
scene = teach_scene_data(data, override(SceneConfig(), settings), output, Run())
print(len(scene.landmarks))
try:
    config = override(scene.config, ["decode.min_score=0"])
    object.__setattr__(scene, "config", config)
    Localizer(scene).localize(cv2.imread(str(folder / "0.png")), camera)
except SldError as error:
    print(error)
""",
        tmp_path,
    )
    assert lines[0] == "30"
    assert "poselib" in lines[1]
    assert lines[1].endswith("run: pip install poselib")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_uses_pycolmap_can_be_stopped(number):
    """COLMAP catches SIGTERM to print a stack trace, in which the process then hangs."""
    program = """
import time
from sld_core.optional import pycolmap
pycolmap.Camera()
print("imported", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"imported\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == -number
    assert b"***" not in said  # the trace
