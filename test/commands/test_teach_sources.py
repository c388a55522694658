"""What `sld teach` and `sld evaluate` are given: COLMAP models, 7-Scenes folders, and mistakes."""

import json

import cv2
import numpy as np
import pytest
from small_room import CAMERA, shoot, sway

from sld_core import cli
from sld_core.data import frame_folder
from sld_core.geometry import invert, quaternion_from_rotation
from sld_core.training import teach as training

KAPPA = -0.15


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """24 images of a corner of the rendered room, by turns of a lens that distorts, of one that
    does not, and of a smaller size; and a COLMAP model with their poses in units of 0.5 m."""
    folder = tmp_path_factory.mktemp("colmap")
    (folder / "photos" / "my hall").mkdir(parents=True)
    (folder / "sparse").mkdir()
    size_f_c, small = f"320 240 300 {CAMERA.cx} {CAMERA.cy}", CAMERA.resized(240, 180)
    cameras = [
        f"8 SIMPLE_RADIAL {size_f_c} {KAPPA}",
        f"3 SIMPLE_PINHOLE {size_f_c}",
        f"4 PINHOLE 240 180 {small.fx} {small.fy} {small.cx} {small.cy}",
    ]
    (folder / "sparse" / "cameras.txt").write_text("\n".join(cameras))
    lines = []
    for i, T in enumerate(sway(24)):
        name, turn = f"my hall/{i}.jpg", i % 3
        image, _ = shoot(T, i, KAPPA if turn == 0 else 0.0)
        if turn == 2:
            image = cv2.resize(image, (240, 180), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "photos" / name), image[..., ::-1])
        x, y, z, w = quaternion_from_rotation(invert(T)[:3, :3])
        t = invert(T)[:3, 3] / 0.5
        camera = cameras[turn].split()[0]
        lines.append(f"{i + 1} {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} {camera} {name}\n\n")
    (folder / "sparse" / "images.txt").write_text("".join(lines))
    return folder


def teach(*arguments):
    return cli.main(["teach", *map(str, arguments)])


def test_a_scene_is_taught_from_a_colmap_model_of_several_cameras(model, tmp_path):
    scene, work = tmp_path / "hall.sld", tmp_path / "work"
    source = ["--colmap", model / "sparse", "--images", model / "photos"]
    options = ["--output", scene, "--work", work, "--head", "prototype", "--landmarks", 200]
    assert teach(*source, "--metres-per-unit", 0.5, *options) == 0
    numbers = tmp_path / "metrics.json"
    images = work / "frames" / "images"
    evaluate = ["evaluate", scene, "--frames", images, "--json", numbers]
    assert cli.main(list(map(str, evaluate))) == 0
    metrics = json.loads(numbers.read_text())
    assert metrics["metric"] and metrics["queries"] == 24 and metrics["accepted"] >= 22
    assert metrics["median_cm"] < 6  # of a head without training, in images of 320x240
    with np.load(work / "tracks.npz") as tracks:
        assert len(tracks["error_px_N"]) > 1000 and np.median(tracks["error_px_N"]) < 0.4


@pytest.fixture
def given(monkeypatch):
    """The arguments that teaching was called with, in place of teaching."""
    found = {}

    def record(frames, work, config, output, run, metric=True):
        found.update(frames=frames, metric=metric)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "teach", record)
    return found


@pytest.mark.parametrize("scale, metric", [([], False), (["--metres-per-unit", "2"], True)])
def test_a_model_is_metric_where_its_scale_is_given(model, tmp_path, given, scale, metric):
    source = ["--colmap", model / "sparse", "--images", model / "photos"]
    teach(*source, *scale, "--output", tmp_path / "x.sld", "--work", tmp_path / "w")
    assert given["metric"] == metric and len(given["frames"]) == 24
    first = sway(24)[0][:3, 3] / 0.5
    position = given["frames"][0].T_world_camera[:3, 3]
    assert np.allclose(position, first * 2 if metric else first)


def test_seven_scenes_are_taught_by_their_training_sequences(tmp_path, given, monkeypatch):
    scenes = tmp_path / "chess"
    for sequence in ("seq-01", "seq-02"):
        (scenes / sequence).mkdir(parents=True)
        cv2.imwrite(
            str(scenes / sequence / "frame-000000.color.png"), np.zeros((480, 640, 3), np.uint8)
        )
        cv2.imwrite(
            str(scenes / sequence / "frame-000000.depth.png"), np.full((480, 640), 999, np.uint16)
        )
        np.savetxt(scenes / sequence / "frame-000000.pose.txt", np.eye(4))
    (scenes / "TrainSplit.txt").write_text("sequence2\n")
    (scenes / "TestSplit.txt").write_text("sequence1\n")
    teach("--frames", scenes, "--output", tmp_path / "x.sld", "--work", tmp_path / "w")
    (frame,) = given["frames"]
    assert frame.name == "seq-02/frame-000000" and given["metric"]
    assert cv2.imread(str(frame.depth_path), cv2.IMREAD_UNCHANGED)[240, 320] == 999
    assert [f.name for f in frame_folder.read_frames(scenes, split="test")] == [
        "seq-01/frame-000000"
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--colmap", "m"], "--colmap DIR and --images DIR belong together"),
        (["--frames", "f", "--images", "i"], "--colmap DIR and --images DIR belong together"),
        (["--colmap", "m", "--images", "i", "--frames", "f"], "give either --frames DIR or"),
        (["--frames", "f", "--metres-per-unit", "1"], "--metres-per-unit belongs to --colmap"),
        (
            ["--colmap", "m", "--images", "i", "--metres-per-unit", "0"],
            "--metres-per-unit belongs to --colmap, and is a number above 0",
        ),
        (["--colmap", "m", "--images", "i"], "no such file or folder"),
        (["--frames", "f", "--landmarks-file", "x"], "--visibility-file belong to --scene-data"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, capsys):
    assert teach(*arguments, "--output", tmp_path / "x.sld") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
