"""`sld map` in clumsy hands: what a stranger met when he tried to break it."""

import fcntl

import pytest

from sld_core import cli
from sld_core.config.mapping import MapConfig
from sld_core.config.settings import override
from sld_core.data.formats.foreign_indoor6 import _chosen
from sld_core.data.formats.indoor6 import read_scene_data
from sld_core.mapping import pipeline
from sld_core.mapping.pipeline import back_at_default, settings_of
from sld_core.types import SldError


def test_two_runs_in_one_map_are_one_clear_error(tmp_path):
    marker = tmp_path / "sld-map.json"
    marker.write_text("{}")
    with open(marker) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SldError, match="another `sld map` is at work"), pipeline._alone(marker):
            pass
    with pipeline._alone(marker):
        pass


def test_a_map_that_lost_its_scene_json_is_not_taken_for_metric(tmp_path):
    (tmp_path / "sld-map.json").write_text("{}")
    with pytest.raises(SldError, match="without its scene.json"):
        read_scene_data(tmp_path)


@pytest.mark.parametrize("distance", ["", " ; "])
def test_an_empty_distance_is_not_passed_over(distance, tmp_path, capsys):
    assert cli.main(["map", "metric", "--output", str(tmp_path), "--distance", distance]) == 2
    assert "--distance is empty" in capsys.readouterr().err


def test_a_place_to_write_is_checked_before_the_work(tmp_path, capsys):
    assert cli.main(["map", "sfm", "--output", str(tmp_path / "m"), "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err and not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "setting, words",
    [
        ("count=5", "did you mean landmarks.count[?]"),
        ("sfm.length=1", "did you mean depth.gaussian_process.length[?]"),
        ("max_features", "did you mean sfm.max_features[?]"),
        ("seeed=1", "did you mean seed[?]"),
    ],
)
def test_a_setting_without_its_group_is_told_where_it_belongs(setting, words):
    with pytest.raises(SldError, match=f"no such setting; {words}"):
        override(MapConfig(), [setting])


def test_files_looked_for_are_named_with_one_asterisk(tmp_path):
    with pytest.raises(SldError, match=r"0 files landmarks-\*\.txt \(none\)"):
        _chosen(tmp_path, "landmarks", None, "")
    with pytest.raises(SldError, match=r"0 files landmarks-300\*\.txt"):
        _chosen(tmp_path, "landmarks", None, "-300")


def test_settings_that_went_back_to_their_default_are_named():
    before = settings_of(
        "landmarks",
        override(MapConfig(), ["landmarks.count=200", "split.test=0.2", "landmarks.min_views=4"]),
        None,
    )
    now = settings_of("landmarks", override(MapConfig(), ["landmarks.min_views=5"]), None)
    assert back_at_default("landmarks", before, now) == [
        "landmarks.count was 200 and is the default 0",
        "split.test was 0.2 and is the default 0.0",
    ]
    assert (
        back_at_default("landmarks", now, before)
        == back_at_default("landmarks", {}, now)
        == back_at_default("dataset", {}, {})
        == []
    )
    modelled = settings_of("depth", MapConfig(), "net.onnx")
    assert back_at_default("depth", modelled, settings_of("depth", MapConfig(), None)) == [
        "--model was 'net.onnx' and is not given"
    ]
