"""`sld map` in clumsy hands: what a stranger met when he tried to break it."""
import fcntl

import pytest

from sld_core import cli
from sld_core.mapping import place
from sld_core.mapping.formats.indoor6 import read_scene_data
from sld_core.types import SldError


def test_two_runs_in_one_map_are_one_clear_error(tmp_path):
    marker = tmp_path / "sld-map.json"
    marker.write_text("{}")
    with open(marker) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SldError, match="another `sld map` is at work"), place._alone(marker):
            pass
    with place._alone(marker):
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
