"""Mistakes on the command line: one clear line that says what to do, and exit status 2."""

import shlex

import cv2
import numpy as np
import pytest

from sld_core import cli

TEACH = "teach --output out.sld "
MAP = "map all --output map --images photos "


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with photographs that nothing can be made of, and files that are nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.jpg"), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "junk").write_text("junk\n")
    (tmp_path / "junk.mcap").write_text("junk")


@pytest.mark.parametrize(
    "line, words",
    [
        (TEACH + "--frames photos", "photos: holds no frames; expected NAME.color.jpg"),
        (TEACH + "--frames photos --set head=1", "such as head.kind=cells"),
        (TEACH + "--frames photos --set head.hiden=1", "did you mean head.hidden?"),
        (TEACH + "--bag junk", "junk: no bag; expected a rosbag2 folder"),
        (TEACH + "--bag junk.mcap", "junk.mcap: not an mcap file"),
        (TEACH + "--colmap empty --images photos", "empty: holds no COLMAP model"),
        (TEACH + "--colmap empty --images photos --metres-per-unit inf", "a number above 0"),
        (TEACH + "--scene-data photos", "expected a labelled dataset"),
        ("info empty", "expected the output of `sld teach`"),
        (MAP + "--intrinsics junk", "junk: no calibration; expected a 3x3 matrix"),
        (MAP + "--distance far", "distance 'far': 1 words"),
        (MAP + "--set 'metric.distance=a b -1'", "expected 0.001 to 100000"),
        (MAP + "--model none.onnx", "--model none.onnx: no such file"),
        ("train plan --json empty", "--json empty is a folder"),
        ("bench backbones --json empty", "--json empty is a folder"),
        ("bench sfm --frames photos --seed -1", "--seed -1: expected a whole number"),
        ("evaluate none.sld --frames photos --report empty", "--report empty is a folder"),
        ("evaluate none.sld --frames photos --reference-noise nan 0", "numbers from 0 on"),
        ("evaluate none.sld --frames photos --foreign --report r.html", "own place"),
    ],
)
def test_a_mistake_is_one_line(line, words, capsys):
    assert cli.main(shlex.split(line)) == 2
    *progress, last = capsys.readouterr().err.replace("\r", "\n").split("\n")[:-1]
    assert last.startswith("sld: ") and words in last
    assert all("reading images" in text for text in progress if text.strip())


def test_numbers_may_go_to_a_device(capsys):
    assert cli.main(["train", "plan", "--backbone", "lite0", "--json", "/dev/null"]) == 0
