import dataclasses
import importlib
import pkgutil

import pytest

import sld_core
from sld_core.baselines.config import SldStarConfig
from sld_core.config.scene import (
    BufferConfig,
    LandmarkConfig,
    SceneConfig,
    ScheduleConfig,
    TargetConfig,
)
from sld_core.config.settings import from_dict, override, range_of, to_dict
from sld_core.config.training import BackboneTrainingConfig
from sld_core.types import SldError

FREE_TEXT = {  # words that no list can hold: topics, frames, paths, measured distances
    "BagConfig": {
        "image_topic",
        "camera_info_topic",
        "depth_topic",
        "camera_frame",
        "world_frame",
    },
    "MetricConfig": {"distance"},
    "SceneConfig": {"backbone_weights"},
}


def every_configuration():
    """All dataclasses of the core that are called Config or Preset, wherever they stand."""
    found = {}
    for module in pkgutil.walk_packages(sld_core.__path__, "sld_core."):
        if any(part in module.name for part in ("config", "plan", "presets")):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__name__.endswith(("Config", "Preset")):
                    found[value.__name__] = value
    return list(found.values())


@pytest.mark.parametrize("kind", every_configuration())
def test_every_field_of_every_configuration_has_a_range_or_choices(kind):
    defaults = kind()
    for field in dataclasses.fields(kind):
        default = getattr(defaults, field.name)
        if isinstance(default, bool) or dataclasses.is_dataclass(default):
            continue
        wanted = "choices" if isinstance(default, str) else "range"
        assert wanted in field.metadata or field.name in FREE_TEXT.get(kind.__name__, ()), (
            field.name
        )
    assert from_dict(to_dict(defaults), kind) == defaults


def test_there_are_configurations_to_look_at():
    names = {kind.__name__ for kind in every_configuration()}
    assert {"SceneConfig", "MapConfig", "SldStarConfig", "PlanConfig", "Preset"} <= names


def test_settings_of_one_name_keep_their_own_ranges():
    assert range_of(LandmarkConfig, "count") == (0, 20_000)
    assert from_dict({"channels": 1}, BufferConfig).channels == 1
    with pytest.raises(SldError, match="setting channels=0: expected a number from 1 to 4096"):
        from_dict({"channels": 0}, BufferConfig)


def test_absent_settings_of_a_group_take_the_defaults_of_whoever_has_the_group():
    """SLD* has other targets and another schedule than heatmap heads."""
    config = from_dict({"target": {"floor": 0.2}, "schedule": {"halvings": 2}}, SldStarConfig)
    assert config.target == TargetConfig("squares", sigma_px=20.0, floor=0.2)
    assert config.schedule == ScheduleConfig("halving", 1e-3, warm_up=0.0, halvings=2)


def test_round_trip():
    config = override(
        SceneConfig(), ["head.hidden=512", "buffer.noise=2", "seed=7", "tracks.refine_poses=False"]
    )
    assert (config.head.hidden, config.seed, config.tracks.refine_poses) == (512, 7, False)
    assert config.buffer.noise == 2.0 and type(config.buffer.noise) is float
    assert from_dict(to_dict(config), SceneConfig) == config


@pytest.mark.parametrize(
    "setting, words",
    [
        ("head.hiden=1", "did you mean head.hidden[?]"),
        ("hidden=1", "did you mean head.hidden"),
        ("head=1", "no such setting; expected NAME=VALUE, such as head.kind=cells"),
        (
            "nothing.at.all=1",
            "no such setting; expected NAME=VALUE, such as backbone=lite0[+]xfeat",
        ),
        ("head.hidden=many", "expected a whole number, such as 256"),
        ("head.hidden=0", "setting head.hidden=0: expected a number from 1 to 4096"),
        ("head.heatmap.width=18", "setting head.heatmap.width=18: expected a multiple of 4"),
        ("decode.min_score=nan", "setting decode.min_score=nan: expected a number from 0.0 to 1.0"),
        (
            "backbone=vgg",
            "setting backbone='vgg': expected one of lite0[+]xfeat, lite0, xfeat, res",
        ),
        ("tracks.refine_poses=1", "expected true or false"),
        ("seed", "expected a whole number, such as 0"),
    ],
)
def test_unknown_or_unusable_settings_are_named_whole(setting, words):
    with pytest.raises(SldError, match=words):
        override(SceneConfig(), [setting])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"hed": {}}, "unknown setting hed"),
        ({"head": {"hiden": 1}}, "unknown setting head.hiden"),
        ({"head": {"hidden": "512"}}, "setting head.hidden: expected int"),
        (
            {"head": {"heatmap": {"target": {"loss": "l2"}}}},
            "setting head.heatmap.target.loss='l2': expected one of",
        ),
        ({"head": {"heatmap": 3}}, "setting head.heatmap: expected a group"),
        ({"seed": 1.5}, "setting seed: expected int"),
        ({"seed": True}, "setting seed: expected int"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named_whole(values, words):
    with pytest.raises(SldError, match=words):
        from_dict(values, SceneConfig)


@pytest.mark.parametrize("settings", ["width=18", "patch_px=72", "schedule.warm_up=1"])
def test_impossible_trainings_are_refused_before_they_begin(settings):
    with pytest.raises(SldError, match="multiple of|0.99"):
        override(BackboneTrainingConfig(), [settings])
