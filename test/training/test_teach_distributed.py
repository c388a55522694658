"""`torchrun -m sld_core.cli teach` makes the scene that one process makes; one of them talks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_room import CAMERA, shoot, sway, write

from sld_core import scene_file
from sld_core.data.formats.indoor6 import write_scene_data
from sld_core.geometry import invert, project, transform
from sld_core.types import Frame, Landmarks, SceneData

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "--set",
    "head.samples=100000",
    "--set",
    "head.batch=1000",
    "--set",
    "buffer.augmented_passes=1",
    "--set",
    "head.hidden=64",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dozen images of a wall, and points of it, seen by depth."""
    folder = tmp_path_factory.mktemp("wall")
    poses, frames, depths = sway(12), [], []
    for i, T in enumerate(poses):
        image, depth_mm = shoot(T, i)
        write(folder / f"image-{i:06d}.jpg", image[..., ::-1])
        frames.append(Frame(f"image-{i:06d}", folder / f"image-{i:06d}.jpg", CAMERA, T))
        depths.append(depth_mm / 1000)
    row, column = (g.ravel() for g in np.mgrid[40:200:20, 40:280:24])
    z = depths[0][row, column]
    ray = np.stack(
        [
            (column + 0.5 - CAMERA.cx) / CAMERA.fx,
            (row + 0.5 - CAMERA.cy) / CAMERA.fy,
            np.ones(len(z)),
        ],
        1,
    )
    xyz_L3 = transform(poses[0], ray * z[:, None])
    visibility = np.stack([_sees(T, depth, xyz_L3) for T, depth in zip(poses, depths)])
    split = tuple("val" if i in (3, 9) else "train" for i in range(len(poses)))
    write_scene_data(
        folder / "data",
        SceneData(
            tuple(frames), split, Landmarks(xyz_L3, np.arange(len(xyz_L3))), visibility, True, "map"
        ),
    )
    return folder / "data"


def _sees(T, depth_HW, xyz_L3):
    xy, z = project(CAMERA, invert(T), xyz_L3)
    inside = (xy > 0).all(1) & (xy < [320, 240]).all(1)
    column, row = np.where(inside[:, None], xy, 0).astype(int).T
    return (inside & (np.abs(depth_HW[row, column] / z - 1) < 0.03)).astype(np.uint8)


def _sld(processes, *arguments):
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        if processes > 1
        else ["-m"]
    )
    return subprocess.run(
        [sys.executable, *start, "sld_core.cli", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def test_two_processes_teach_the_scene_of_one(dataset, tmp_path):
    scenes = []
    for processes in (1, 2):
        done = _sld(
            processes,
            "teach",
            "--scene-data",
            dataset,
            "--output",
            tmp_path / f"{processes}.sld",
            *QUICK,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("taught in") == 1 and done.stdout.count("held-out frames: 2") == 1
        scenes.append(scene_file.load(tmp_path / f"{processes}.sld"))
    one, two = scenes
    assert torch.equal(one.head.whitening.matrix, two.head.whitening.matrix)
    # bfloat16 rounds shares of a batch otherwise than the whole
    assert np.array(two.report.loss_curve) == pytest.approx(
        np.array(one.report.loss_curve), abs=0.1
    )
    assert one.report.counts == two.report.counts
    assert two.report.validation["queries"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.sld", "2.sld"]


def test_what_rank_0_cannot_use_ends_both_with_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done = _sld(2, "teach", "--scene-data", tmp_path / "empty", "--output", tmp_path / "x.sld")
    assert done.returncode != 0 and not (tmp_path / "x.sld").exists()
    assert len([line for line in done.stderr.splitlines() if line.startswith("sld: ")]) == 1, (
        done.stderr
    )
