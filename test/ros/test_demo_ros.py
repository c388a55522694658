"""The whole path over real DDS: record, teach, load and localize, in nodes of their own, on a
rendered drive."""

import json

import numpy as np
import pytest

from sld_core.geometry import interpolate
from sld_core.synthetic import DEMO_CAMERA, Room, drive, write_sequence
from sld_core.types import SldError

pytestmark = [pytest.mark.ros, pytest.mark.timeout(900)]


def test_from_a_drive_to_poses_on_tf(tmp_path):
    from sld_ros.demo.demo import run_demo

    mapping = drive(0, 150)[:40]
    queries = [interpolate(a, b, 0.5) for a, b in zip(mapping[3:36:4], mapping[4:36:4])]
    for i, T in enumerate(queries):
        T[:2, 3] += 0.05 * np.array([np.cos(i), np.sin(i)])
    write_sequence(tmp_path / "drive", Room.make(0), DEMO_CAMERA, mapping, queries)

    metrics = run_demo(tmp_path / "out", tmp_path / "drive", rate=10, seed=0, head="prototype")

    assert metrics["queries"] == metrics["tf_queries"] == len(queries)
    assert metrics["recall_10cm_10deg"] >= 0.7 and metrics["tf_recall_10cm_10deg"] >= 0.7
    assert metrics["wrong_fixes"] == metrics["tf_wrong_fixes"] == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/") >= 5 and "http" not in page
    assert (tmp_path / "out" / "recordings" / "demo" / "metadata.yaml").exists()
    assert {path.stem for path in (tmp_path / "out" / "logs").iterdir()} == {
        "localizer",
        "recorder",
        "trainer",
    }


def test_an_output_that_is_a_file_is_one_line(tmp_path):
    from sld_ros.demo.demo import run_demo

    (tmp_path / "file").touch()
    with pytest.raises(SldError, match="--output .*/file: cannot be made a folder"):
        run_demo(tmp_path / "file", None, 0.0, 0, "cells")
