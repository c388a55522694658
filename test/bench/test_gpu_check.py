"""tools/gpu_check.sh: all of it on a CPU at a toy scale; and steps that fail, hang or lack
something."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gpu_check import check
from gpu_check.check import Row, run
from gpu_check.labels_from_depth import label_by_depth
from gpu_check.steps import Check, Step, plan
from sld_core import cli
from sld_core.bench.paper.presets import PRESETS
from sld_core.config.scene import LandmarkConfig, SceneConfig
from sld_core.config.settings import override
from sld_core.config.training import BackboneTrainingConfig
from sld_core.data.frame_folder import read_frames
from sld_core.geometry import make_transform
from sld_core.synthetic import write_sequence
from sld_core.types import Camera, SldError, Visibility

ROOT = Path(__file__).parents[2]
CAMERA = Camera(320, 224, 150.0, 150.0, 160.5, 112.5)
WALL_M, PIXEL_M = 2.5, 0.0125  # how far the wall is, and a pixel of its picture


class Wall:
    """A picture of 7.5 x 5 m at z = 2.5 m, looked at head-on."""

    def __init__(self):
        rng = np.random.default_rng(0)
        layers = [
            cv2.resize(rng.uniform(0, 255, (400 // k, 600 // k, 3)), (600, 400)) for k in (5, 14)
        ]
        self.image = np.mean(layers, 0).astype(np.uint8)

    def render(self, camera, T_world_camera, noise=None):
        (x, y, z), size = T_world_camera[:3, 3], (camera.width, camera.height)
        depth = WALL_M - z
        scale = PIXEL_M * camera.fx / depth  # image pixels for each pixel of the picture
        shift = [
            camera.cx - camera.fx * (x + 3.75) / depth,
            camera.cy - camera.fy * (y + 2.5) / depth,
        ]
        A = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        A[:, 2] += (scale - 1) / 2  # OpenCV counts from the centre of the first pixel
        seen = cv2.warpAffine(self.image, A, size, flags=cv2.INTER_AREA)
        return seen, np.full(size[::-1], depth, np.float32)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """10 frames to learn from and 3 queries between them."""
    folder = tmp_path_factory.mktemp("wall") / "frames"
    steps = np.linspace(0, 1, 13)
    where = np.column_stack([steps - 0.5, 0.4 * np.sin(7 * steps), 0.3 * np.cos(9 * steps)])
    poses = [make_transform(np.eye(3), position) for position in where]
    write_sequence(folder, Wall(), CAMERA, [*poses[::2], *poses[1::4]], poses[3::4])
    return folder


def test_landmarks_from_depth_lie_on_the_wall_and_are_seen_where_they_project(frames):
    data = label_by_depth(read_frames(frames, frames / "map.txt"), LandmarkConfig(count=50))
    assert len(data.landmarks) == 50
    assert data.landmarks.xyz_L3[:, 2] == pytest.approx(WALL_M, abs=1e-3)
    assert ((data.visibility_FL == Visibility.VISIBLE).sum(0) >= 6).all()
    x_FL = data.landmarks.xyz_L3[:, 0] - np.array([[f.T_world_camera[0, 3]] for f in data.frames])
    depth_F1 = WALL_M - np.array([[f.T_world_camera[2, 3]] for f in data.frames])
    outside = np.abs(x_FL / depth_F1) > 161 / 150
    assert (data.visibility_FL[outside] == Visibility.HIDDEN).all()


def test_a_frame_without_depth_is_named(frames):
    one = replace(read_frames(frames, frames / "query.txt")[0], depth_path=None)
    with pytest.raises(SldError, match="has no depth image"):
        label_by_depth([one], LandmarkConfig())


@pytest.mark.timeout(600)
def test_the_whole_on_a_cpu(frames, tmp_path):
    command = [ROOT / "tools/gpu_check.sh", "--device", "cpu", "--small"]
    done = subprocess.run(
        [*command, "--frames", frames, "--output", tmp_path],
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log.txt").read_text()
    rows = {row["step"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert not [row for row in rows.values() if row["result"].startswith("failed")]
    assert rows["prepare"]["numbers"] == {
        "scene": "frames",
        "frames": 10,
        "landmarks": 60,
        "queries": 3,
    }
    for name in (
        "teach cells, cpu",
        "teach heatmap, cpu",
        "teach cells, cpu, one process of torchrun",
    ):
        assert rows[name]["numbers"]["head_s"] > 0
    assert rows["localize cells taught on cpu, cpu"]["numbers"]["median_cm"] < 6
    assert rows["pieces of a query (p50 ms), cpu"]["numbers"]["backbone"] > 0
    assert "skipped: " in rows["COLMAP's PatchMatch beside the depth images, cuda"]["result"]
    for step in rows:
        assert f"| {step} |" in done.stdout


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_commands_of_the_full_scale_are_understood(frames, tmp_path, device):
    configs = {"teach": SceneConfig(), "train": BackboneTrainingConfig(), "paper": PRESETS["gpu"]}
    steps = plan(Check(device, False, tmp_path, frames))
    assert len({step.name for step in steps}) == len(steps) == {"cuda": 20, "cpu": 11}[device]
    for step in steps:
        if "sld_core.cli" in step.command:
            words = step.command[step.command.index("sld_core.cli") + 1 :]
            args = cli._parser().parse_args(words)
            assert args.device in (device, "cpu")
            for name in set(configs) & set(words[:2]):
                override(configs[name], args.set)


def python(program, **settings):
    return Step("a step", ("-c", program), **{"limit_s": 30.0, **settings})


def test_what_a_step_says_of_itself(tmp_path):
    log = tmp_path / "log"
    found = run(python("print('fine')", read=lambda: {"n": 3}), 60, log)
    assert (found.result, found.numbers) == ("ok", {"n": 3})
    failed = run(python("import sys; print('one', flush=True); sys.exit('two\\n')"), 60, log)
    assert failed.result == "failed: two"
    assert failed.failed
    hung = run(python("import time; time.sleep(60)", limit_s=0.5), 60, log)
    assert hung.result == "failed: not done after 0 s"
    unread = run(python("", read=lambda: json.loads("")), 60, log)
    assert unread.result.startswith("failed: its numbers cannot be read")
    assert log.read_text().count("== a step") == 4


def test_what_a_hanging_step_started_ends_with_it(tmp_path):
    program = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""
    assert run(python(program, limit_s=2.0), 60, tmp_path / "log").failed
    pid = int((tmp_path / "log").read_text().split()[-1])
    state = Path(f"/proc/{pid}/stat")

    def ended():
        try:
            return state.read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    deadline = time.monotonic() + 20  # it is killed, but may not have been scheduled since
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended()


def test_what_is_skipped_is_named(tmp_path):
    log = tmp_path / "log"
    lacking = run(python("1/0", needs=("numpy", "no_such_module")), 60, log)
    assert lacking == Row("a step", "skipped: no no_such_module")
    assert run(python("1/0", skip="too long"), 60, log).result == "skipped: too long"
    assert run(python("1/0"), 0.5, log).result == "skipped: no time left"


def test_the_table_is_there_after_a_failure_too(tmp_path, monkeypatch, capsys):
    steps = [python("import sys; sys.exit('no luck')"), python("")]
    monkeypatch.setattr(check, "prepare", lambda *_: Row("prepare", "ok"))
    monkeypatch.setattr(check, "plan", lambda *_: steps)
    assert check.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    table = (tmp_path / "table.md").read_text()
    assert "| a step | failed: no luck |" in table
    assert "| a step | ok |" in table
    assert capsys.readouterr().out.endswith(table + "\n")
