"""The paper's heads, the decoding of heatmaps and the recipe, on toys."""

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sld_core import cli, heatmap, scene_file
from sld_core.config.scene import (
    DecodeConfig,
    HeadConfig,
    HeatmapConfig,
    SceneConfig,
    ScheduleConfig,
    TargetConfig,
)
from sld_core.config.settings import to_dict
from sld_core.heatmap import ScoreMaps
from sld_core.models import heads
from sld_core.models.heads import HeatmapSceneHead, Whitening
from sld_core.models.heatmap_head import DilatedBlock, PaperHead, SkipBlock, TrainingHead
from sld_core.scene_file import Scene
from sld_core.training import targets, train_heatmap_head
from sld_core.training.feature_map_buffer import FeatureMapBuffer
from sld_core.training.run import Run
from sld_core.training.schedule import rate
from sld_core.training.validation import ValidationResult
from sld_core.types import Camera, Landmarks, SceneReport, SldError, Visibility

# networks -----------------------------------------------------------------------------------------


def reach_of(network, channels, size=25):
    """How many rows and columns about a cell change its output."""
    features = torch.zeros(1, channels, size, size, requires_grad=True)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.2)  # nothing cancels, and no ReLU is shut
    network(features)[..., size // 2, size // 2].sum().backward()
    rows, columns = torch.nonzero(features.grad.abs().sum((0, 1)), as_tuple=True)
    return {tuple(c) for c in zip((rows - size // 2).tolist(), (columns - size // 2).tolist())}


def test_a_dilated_block_sees_1_to_4_cells_away_along_lines_and_diagonals():
    assert reach_of(DilatedBlock(3, 8), 3) == {
        (d * i, d * j) for d in (1, 2, 3, 4) for i in (-1, 0, 1) for j in (-1, 0, 1)
    }


@pytest.mark.parametrize(
    "network, cells",
    [
        (PaperHead(3, 2, 8), 17),
        (TrainingHead(3, 2, 8, dilated=True), 9),
        (TrainingHead(3, 2, 8, dilated=False), 1),
    ],
)
def test_how_far_each_head_sees(network, cells):
    seen = reach_of(network, 3)
    assert max(max(map(abs, c)) for c in seen) == cells // 2
    assert network(torch.zeros(2, 3, 5, 7)).shape == (2, 2, 5, 7)


def test_parameters_by_hand():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    skip, last = 2 * (16 * 16 + 16), 16 * 5 + 5
    assert count(PaperHead(12, 5, 16)) == 12 * 16 * 9 + 16 + 16 * 16 * 9 + 16 + 2 * skip + last
    assert count(TrainingHead(12, 5, 16, dilated=True)) == 12 * 16 * 9 + 16 + skip + last
    assert count(TrainingHead(12, 5, 16, dilated=False)) == 2 * (12 * 12 + 12) + 12 * 5 + 5


def test_a_skip_block_starts_as_the_identity_and_a_wrong_width_is_one_error():
    x = torch.rand(1, 4, 3, 3)
    torch.testing.assert_close(SkipBlock(4)(x), x)
    with pytest.raises(SldError, match="width 10: expected a multiple of 4"):
        PaperHead(8, 3, 10)


# decoding -----------------------------------------------------------------------------------------


def gaussian_maps(xy_px, sigma_px, **how):
    visible = torch.full((1, len(xy_px)), int(Visibility.VISIBLE))
    target, _ = targets.render(
        torch.tensor([xy_px], dtype=torch.float32), visible, (60, 80), sigma_px, 0.01
    )
    return ScoreMaps(target[0], torch.zeros(2, 60, 80), torch.full((60, 80), 0.2), **how)


@given(st.floats(60, 580), st.floats(60, 420), st.sampled_from([(8.0, 2), (12.0, 3), (20.0, 6)]))
@settings(max_examples=60)
def test_a_gaussian_decodes_to_its_centre(x, y, case):
    sigma_px, reach = case
    found = heatmap.decode(
        gaussian_maps([(x, y)], sigma_px, reach=reach, power=2.0, threshold=0.05), DecodeConfig()
    )
    assert (
        np.abs(found.xy_px_K2[0] - (x, y)).max() < 0.5
    )  # the window cuts the tails a little unevenly


def test_the_squared_thresholded_centroid_by_hand():
    """Scores 1.0 and 0.5 in neighbouring cells, 0.05 (below a tenth of the peak) and 0.4 (out of
    reach) elsewhere."""
    score = torch.zeros(1, 10, 10)
    score[0, 4, 4:6], score[0, 5, 4], score[0, 4, 8] = torch.tensor([1.0, 0.5]), 0.05, 0.4
    maps = ScoreMaps(
        score, torch.zeros(2, 10, 10), torch.ones(10, 10), reach=2, power=2.0, threshold=0.1
    )
    np.testing.assert_allclose(
        heatmap.decode(maps, DecodeConfig()).xy_px_K2, [[36 + 8 * 0.25 / 1.25, 36.0]], atol=1e-5
    )


def test_decode_near_takes_the_centroid_there():
    maps = gaussian_maps([(100.0, 100.0)], 12.0, reach=3, power=2.0)
    maps.score_Lhw[0, 50, 70] = 1.0
    near = heatmap.decode_near(maps, np.array([[104.0, 97.0]]), DecodeConfig())
    np.testing.assert_allclose(near.xy_px_K2, [[100, 100]], atol=0.5)


# the scene head -----------------------------------------------------------------------------------


NARROW = HeatmapConfig(width=8)


def scene_head(config=NARROW, channels=64, landmarks=30):
    torch.manual_seed(0)
    whitening = Whitening(channels, 16)
    whitening.matrix.normal_()
    return HeatmapSceneHead(whitening, PaperHead(16, landmarks, config.width), config).eval()


@pytest.mark.parametrize("loss", ["squares", "focal", "softmax", "cells"])
def test_a_scene_with_the_papers_head_comes_back_from_its_file(tmp_path, loss):
    config = HeatmapConfig(width=8, target=TargetConfig(loss), reach=3)
    head = scene_head(config)
    head.sigma.fill_(0.5)
    torch.nn.init.normal_(head.maps.layers[-1].weight, std=0.2)
    landmarks = Landmarks(np.random.default_rng(0).normal(size=(30, 3)), np.arange(30))
    settings = SceneConfig(backbone="xfeat", head=HeadConfig(kind="heatmap", heatmap=config))
    scene = Scene(
        "hall",
        landmarks,
        np.zeros(3),
        head,
        Camera(640, 480, 500.0, 500.0, 320.0, 240.0),
        (0.0, 0.0),
        settings,
        SceneReport({}, {}, [], {}),
    )
    scene_file.save(scene, tmp_path / "a.sld")
    back = scene_file.load(tmp_path / "a.sld")
    features = torch.randn(64, 6, 7)
    mine, read = head(features), back.head(features)
    torch.testing.assert_close(read.score_Lhw, mine.score_Lhw, atol=0.05, rtol=0.05)
    assert (read.reach, read.power, read.threshold) == (3, 2.0, 0.1) and (
        read.sigma_hw == 0.5
    ).all()
    assert mine.score_Lhw.std() > 0.005 and mine.score_Lhw.min() >= 0 and mine.score_Lhw.max() <= 1


def test_settings_of_scenes_before_there_were_groups_are_read(tmp_path, monkeypatch):
    """Files of earlier versions hold the loss, sigma and schedule directly in head.heatmap."""
    target = TargetConfig("focal", sigma_px=12.0)
    schedule = ScheduleConfig("halving", learning_rate=1e-3, halvings=2)
    config = HeatmapConfig(width=8, target=target, schedule=schedule, reach=3)
    scene = Scene(
        "hall",
        Landmarks(np.random.default_rng(0).normal(size=(30, 3)), np.arange(30)),
        np.zeros(3),
        scene_head(config),
        Camera(640, 480, 500.0, 500.0, 320.0, 240.0),
        (0.0, 0.0),
        SceneConfig(backbone="xfeat", head=HeadConfig(kind="heatmap", heatmap=config)),
        SceneReport({}, {}, [], {}),
    )

    def ungrouped(config):
        values = to_dict(config)
        heatmap = values["head"]["heatmap"]
        groups = heatmap.pop("target") | heatmap.pop("schedule")
        heatmap |= groups | {"schedule": groups.pop("kind")}
        assert heatmap["loss"] == "focal" and heatmap["schedule"] == "halving"
        return values

    monkeypatch.setattr(scene_file, "to_dict", ungrouped)
    scene_file.save(scene, tmp_path / "old.sld")
    assert scene_file.load(tmp_path / "old.sld").config == scene.config


def test_a_state_of_another_width_is_refused_before_memory_is_taken():
    state = scene_head().state_dict()
    with pytest.raises(SldError, match="head of width 8, but head.heatmap.width=4096"):
        heads.from_state(
            HeadConfig(kind="heatmap", heatmap=HeatmapConfig(width=4096)), state, 64, 30
        )


# the recipe ---------------------------------------------------------------------------------------

TOY = SceneConfig(
    head=HeadConfig(
        kind="heatmap",
        heatmap=HeatmapConfig(
            width=32,
            steps=120,
            patches=8,
            patch_px=80,
            check_every=40,
            validation_fraction=0.2,
        ),
    )
)


def toy_buffer(frames=40, landmarks=6, h=14, w=16, channels=12):
    """Landmarks with a feature of their own, spread over the cells about them by how near they are,
    in noise."""
    rng = torch.Generator().manual_seed(1)
    signature = (
        torch.nn.functional.normalize(torch.randn(landmarks, channels, generator=rng), dim=1) * 3
    )
    xy = torch.rand(frames, landmarks, 2, generator=rng) * torch.tensor([8.0 * w, 8.0 * h])
    visibility = (torch.rand(frames, landmarks, generator=rng) < 0.7).to(torch.uint8)
    near, _ = targets.render(xy, visibility, (h, w), 8.0, 0.01)
    features = torch.einsum("blhw,lc->bhwc", near, signature) + 0.3 * torch.randn(
        frames, h, w, channels, generator=rng
    )
    starts = torch.arange(frames) * h * w
    return FeatureMapBuffer(
        features.flatten(0, 2).half(),
        starts,
        torch.tensor([[h, w]]).expand(frames, 2),
        torch.arange(frames),
        torch.ones(frames, dtype=bool),
        xy,
        visibility,
    )


def toy_config(**changes):
    return dataclasses.replace(
        TOY,
        head=dataclasses.replace(
            TOY.head, heatmap=dataclasses.replace(TOY.head.heatmap, **changes)
        ),
    )


def train(config=TOY, buffer=None, seed=0):
    """The head, its loss curve, and (step, seconds, result) of every validation."""
    validations, white = [], Whitening(12, 12)
    white.matrix.copy_(torch.eye(12))
    head, curve = train_heatmap_head.train(
        buffer or toy_buffer(),
        white,
        config,
        Run(seed=seed),
        lambda step, seconds, head, result: validations.append((step, seconds, result)),
    )
    return head, curve, validations


@pytest.mark.parametrize(
    "loss, positive_weight, steps",
    [("cells", 20.0, 120), ("focal", 20.0, 120), ("softmax", 1.0, 250), ("squares", 20.0, 120)],
)
def test_every_loss_finds_the_landmarks_of_frames_never_learned(loss, positive_weight, steps):
    config = toy_config(target=TargetConfig(loss, positive_weight=positive_weight), steps=steps)
    head, curve, validations = train(config)
    best = max((result for _, _, result in validations), key=lambda result: result.found)
    assert best.found > 0.4 and best.precision > 0.3 and best.pixel_error < 4
    assert curve[-1][1] < 0.5 * curve[0][1]
    if loss in ("cells", "squares"):
        assert best.found > 0.9 and best.precision > 0.8 and best.pixel_error < 2
    found = heatmap.decode(head(toy_buffer().map(0)), config.decode)
    # the median distance of a normal distribution in two dimensions is 1.18 sigma
    assert found.sigma_px_K[0] == pytest.approx(best.pixel_error / 1.1774, rel=1e-3)


def test_the_same_seed_gives_the_same_head_and_another_another():
    config = toy_config(steps=20)
    first, again, other = (train(config, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["maps.layers.4.weight"], other["maps.layers.4.weight"])


def test_training_stops_when_nothing_is_gained_and_the_best_head_is_returned(monkeypatch):
    found = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    seen = []

    def validate(head, *_):
        seen.append({k: v.clone() for k, v in head.state_dict().items()})
        return ValidationResult(next(found), 0.0, 0.0)

    monkeypatch.setattr(train_heatmap_head, "validate", validate)
    head, _, validations = train(toy_config(steps=500, check_every=2, patience=3))
    assert [result.found for _, _, result in validations] == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert all(torch.equal(v, seen[1][k]) for k, v in head.state_dict().items())


def test_time_is_a_limit_too():
    _, curve, validations = train(toy_config(steps=10**6, max_seconds=1.0, check_every=10**6))
    ((step, seconds, _),) = validations
    assert step == curve[-1][0] and seconds < 5


def test_the_time_of_a_watcher_is_not_that_of_the_training():
    times, white = [], Whitening(12, 12)

    def watch(step, seconds, head, result):
        times.append(seconds)
        time.sleep(1.0)

    train_heatmap_head.train(toy_buffer(), white, toy_config(steps=3, check_every=1), Run(), watch)
    assert len(times) == 3 and times[-1] - times[0] < 1.9


def test_a_training_that_diverges_says_what_to_do():
    buffer = toy_buffer()
    buffer.feature_NC.fill_(torch.nan)
    with pytest.raises(SldError, match="lower head.heatmap.schedule.learning_rate"):
        train(toy_config(steps=3), buffer)


@pytest.mark.parametrize(
    "done, kind, expected",
    [
        (0.0, "cosine", 0.01 / 0.06),
        (0.05, "cosine", 1.0),
        (0.525, "cosine", 0.5),
        (1.0, "cosine", 0.0),
        (0.1, "halving", 1.0),
        (0.21, "halving", 0.5),
        (0.99, "halving", 0.5**4),
    ],
)
def test_learning_rates_by_hand(done, kind, expected):
    assert rate(done, ScheduleConfig(kind, warm_up=0.05, halvings=4)) == pytest.approx(expected)


def test_held_out_frames_are_never_learned():
    buffer = toy_buffer()
    learned, kept = train_heatmap_head.split(buffer, 0.2)
    assert len(kept) == 8 and not set(kept) & set(learned.tolist()) and len(learned) == 32
    learned, kept = train_heatmap_head.split(buffer, 0.0)
    assert len(learned) == len(kept) == 40


@pytest.mark.shared
@pytest.mark.slow
def test_the_papers_head_in_the_kitchen(tmp_path):
    """Localizes 60 % of the queries within 5 cm and 5 deg after at most 20 minutes of training."""
    kitchen = (
        Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
        / "data"
        / "kitchen"
    )
    if not kitchen.is_dir():
        pytest.skip(
            f"no recorded kitchen at {kitchen}; set SLD_SHARED to the folder that holds data/"
        )
    scene, frames = str(tmp_path / "kitchen.sld"), ["--frames", str(kitchen)]
    assert (
        cli.main(
            ["teach", *frames, "--list", "map.txt", "--output", scene, "--set", "head.kind=heatmap"]
        )
        == 0
    )
    assert (
        cli.main(
            ["evaluate", scene, *frames, "--list", "query.txt", "--json", str(tmp_path / "m.json")]
        )
        == 0
    )
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (
        metrics["recall_5cm_5deg"] >= 0.6
        and metrics["head_train_s"] < 1200
        and metrics["wrong_fixes"] == 0
    )
