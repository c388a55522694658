import pytest

from sld_core.config.scene import SceneConfig
from sld_core.config.settings import from_dict, override, to_dict
from sld_core.config.training import BackboneTrainingConfig
from sld_core.types import SldError


def test_round_trip():
    config = override(
        SceneConfig(), ["head.hidden=512", "buffer.noise=2", "seed=7", "tracks.refine_poses=False"]
    )
    assert (config.head.hidden, config.buffer.noise, config.seed, config.tracks.refine_poses) == (
        512,
        2.0,
        7,
        False,
    )
    assert from_dict(to_dict(config), SceneConfig) == config


@pytest.mark.parametrize(
    "setting",
    [
        "head.hiden=1",
        "head=1",
        "nothing.at.all=1",
        "head.hidden=many",
        "tracks.refine_poses=1",
        "seed",
    ],
)
def test_unknown_or_unreadable_settings_raise(setting):
    with pytest.raises(SldError, match="setting"):
        override(SceneConfig(), [setting])


@pytest.mark.parametrize(
    "values", [{"hed": {}}, {"head": {"hidden": "512"}}, {"head": 3}, {"seed": 1.5}]
)
def test_unknown_keys_and_wrong_types_raise(values):
    with pytest.raises(SldError):
        from_dict(values, SceneConfig)


@pytest.mark.parametrize("settings", ["width=18", "patch_px=72", "warm_up=1"])
def test_what_a_training_cannot_do_is_said_before_it_begins(settings):
    with pytest.raises(SldError, match="multiple of|0.99"):
        override(BackboneTrainingConfig(), [settings])
