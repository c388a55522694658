"""One backbone learns on many scenes: it learns, goes on after a kill as if nothing had been, and
several processes are as one."""

import csv
import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_scenes
from torch import nn

from sld_core.config.scene import ScheduleConfig
from sld_core.config.settings import override
from sld_core.config.training import BackboneTrainingConfig
from sld_core.models.heatmap_head import TrainingHead
from sld_core.training import train_backbone
from sld_core.training.channel_normalization import NormalizedBackbone
from sld_core.training.distributed import World
from sld_core.training.run import Run, ignore
from sld_core.training.scene_batches import Batch
from sld_core.training.scene_images import SceneImages, ahead
from sld_core.training.schedule import rate
from sld_core.training.train_backbone import BEST, LAST, Job, _draw, _set_training, backbone_rate
from sld_core.types import SldError, Visibility

SCRIPT = Path(toy_scenes.__file__)
# else processes that start again look for the dead ones:
# https://github.com/pytorch/pytorch/issues/135712
RESTARTS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def training_sets(tmp_path_factory):
    return toy_scenes.training_sets(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(training_sets, tmp_path_factory):
    """A run that nobody disturbed, and its folder."""
    work = tmp_path_factory.mktemp("whole")
    return train(training_sets, toy_scenes.Toy(), toy_scenes.config(), work), work


def stop_at(call):
    """A callback that interrupts the training in this call, counted from 0."""
    calls = itertools.count()

    def progress(_):
        if next(calls) == call:
            raise KeyboardInterrupt

    return progress


def train(training_sets, network, config, work, resume=False, progress=ignore):
    run = Run(progress=progress)
    return train_backbone.train(training_sets, network, config, work, run, resume)


def log(work):
    """Rows of log.csv without the time they took."""
    with open(work / "log.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def process(work, *settings, launcher=(), kill=None):
    env = os.environ | {
        "PYTHONPATH": f"{SCRIPT.parents[1]}:{SCRIPT.parent}",
        "OMP_NUM_THREADS": "1",
        **RESTARTS,
    }
    env |= {"KILL_AT_STEP_AND_RANK": kill} if kill else {}
    command = [sys.executable, *launcher, str(SCRIPT), str(work), *settings]
    return subprocess.run(command, env=env, timeout=120, capture_output=True, text=True)


def torchrun(*options):
    return [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        *options,
    ]


def assert_equal(state, other, **tolerance):
    assert state.keys() == other.keys()
    for name in state:
        torch.testing.assert_close(
            state[name],
            other[name],
            **tolerance or {"rtol": 0, "atol": 0},
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_it_learns_to_find_landmarks_in_images_it_has_not_seen(training_sets, tmp_path):
    trained = train(
        training_sets,
        toy_scenes.Toy(),
        toy_scenes.config("epochs=30", "save_every=1000", "check_every=15"),
        tmp_path,
    )
    losses = [float(row["loss"]) for row in log(tmp_path) if row["loss"]]
    assert len(losses) == 30 * 5 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    best = trained.record["best"]["scenes"]
    assert set(best) == {"scene0", "scene1", "all"}
    assert best["all"]["pixel_error"] < 6 and best["all"]["found"] > 0.5  # discs 10 px wide
    assert best["all"]["pixel_error"] == pytest.approx(
        (best["scene0"]["pixel_error"] + best["scene1"]["pixel_error"]) / 2
    )


def test_a_step_changes_the_backbone_and_the_head_of_its_scene_only(training_sets, tmp_path):
    for order, changed in (("shuffled", 1), ("rounds", 2)):
        with pytest.raises(KeyboardInterrupt):
            train(
                training_sets,
                toy_scenes.Toy(),
                toy_scenes.config(f"order={order}"),
                tmp_path / order,
                progress=stop_at(1),
            )
        state = torch.load(tmp_path / order / LAST, weights_only=True)
        assert state["step"] == 1 and state["batches"] == {"epoch": 0, "position": 1}
        torch.manual_seed(0)
        fresh = nn.ModuleList(TrainingHead(12, 8, 16, True) for _ in training_sets).state_dict()
        moved = {
            name.split(".")[0]
            for name in fresh
            if not torch.equal(fresh[name], state["heads"][name])
        }
        assert len(moved) == changed
        assert not torch.equal(
            toy_scenes.Toy().layers[0].weight, state["backbone"]["network.layers.0.weight"]
        )


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(training_sets, whole, tmp_path):
    settings = toy_scenes.config("save_every=3")
    stop = stop_at(6)  # between two checkpoints, in the second of three epochs
    with pytest.raises(KeyboardInterrupt):
        train(training_sets, toy_scenes.Toy(), settings, tmp_path, progress=stop)
    assert len(log(tmp_path)) == 7 + 3
    with open(tmp_path / "log.csv", "a") as file:
        file.write("8,1.6")  # a kill may cut a line
    resumed = train(training_sets, toy_scenes.Toy(seed=5), settings, tmp_path, resume=True)
    assert log(tmp_path) == log(whole[1])
    assert_equal(resumed.network.state_dict(), whole[0].network.state_dict())
    again = train(
        training_sets, toy_scenes.Toy(), settings, tmp_path, resume=True
    )  # nothing is left to do
    assert_equal(again.network.state_dict(), whole[0].network.state_dict())
    assert again.record["best"] == whole[0].record["best"]


def test_a_killed_process_goes_on_exactly(training_sets, whole, tmp_path):
    assert process(tmp_path, kill="8 0").returncode == -9
    assert not (tmp_path / "final.pt").exists() and len(log(tmp_path)) == 9 + 3
    resumed = train(
        training_sets, toy_scenes.Toy(seed=5), toy_scenes.config(), tmp_path, resume=True
    )
    assert log(tmp_path) == log(whole[1])
    assert_equal(resumed.network.state_dict(), whole[0].network.state_dict())


def test_two_processes_of_which_one_is_killed_are_as_one(whole, tmp_path):
    """Elastic restart: torchrun starts both again, and they go on from the last checkpoint."""
    ended = process(tmp_path, launcher=torchrun("--max-restarts", "1"), kill="8 1")
    assert ended.returncode == 0, ended.stderr
    assert "(exitcode: -9) local_rank: 1" in ended.stderr
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert_equal(final["network"], whole[0].network.state_dict(), rtol=1e-4, atol=1e-5)
    assert_equal(final["head"], whole[0].heads["scene1"].state_dict(), rtol=1e-4, atol=1e-5)
    for row, other in zip(log(tmp_path), log(whole[1]), strict=True):
        assert (row["step"], row["scene"]) == (other["step"], other["scene"])
        assert not row["loss"] or float(row["loss"]) == pytest.approx(
            float(other["loss"]), rel=1e-4
        )


def test_two_processes_are_as_one_where_gradients_of_scenes_are_added_up(training_sets, tmp_path):
    settings = ["order=rounds", "epochs=2", "batch=3"]
    ended = process(tmp_path / "two", *settings, launcher=torchrun())
    assert ended.returncode == 0, ended.stderr
    alone = train(training_sets, toy_scenes.Toy(), toy_scenes.config(*settings), tmp_path / "one")
    assert_equal(
        torch.load(tmp_path / "two" / "final.pt", weights_only=True)["network"],
        alone.network.state_dict(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_shares_of_ranks_make_up_the_batch(training_sets):
    scenes = [
        SceneImages(one, i, toy_scenes.config()) for i, one in enumerate(training_sets.values())
    ]
    job = Job(0, (Batch(0, (7, 2, 5)), Batch(1, (4,))), {})
    ranks = [_draw(job, scenes, World(rank, 2)) for rank in range(2)]
    images = [[patches.image_NPP3 for patches in drawn] for drawn, _ in ranks]
    alone, _ = _draw(job, scenes, World(0, 1))
    assert np.array_equal(np.concatenate([images[0][0], images[1][0]]), alone[0].image_NPP3)
    assert [shares for _, shares in ranks] == [
        [2 / 3, 0],
        [4 / 3, 2],
    ]  # of the mean loss; the mean over ranks is that of all


def test_other_settings_or_no_word_of_resuming_are_refused(training_sets, whole):
    network, work = toy_scenes.Toy(), whole[1]
    with pytest.raises(SldError, match="already holds a training run"):
        train(training_sets, network, toy_scenes.config(), work)
    with pytest.raises(SldError, match="other settings"):
        train(training_sets, network, toy_scenes.config("batch=2"), work, resume=True)
    with pytest.raises(SldError, match="other scenes"):
        train({"scene0": training_sets["scene0"]}, network, toy_scenes.config(), work, resume=True)


def test_a_training_that_diverges_says_so(training_sets, tmp_path):
    network = toy_scenes.Toy()
    network.layers[0].bias.data[0] = float("nan")
    with pytest.raises(
        SldError, match="diverged at step 1; lower schedule.learning_rate from 0.01"
    ):
        train(training_sets, network, toy_scenes.config(), tmp_path)
    assert not (tmp_path / LAST).exists()


def test_half_precision_that_diverges_for_good_says_so_too(training_sets, tmp_path):
    network = toy_scenes.Toy()
    network.layers[0].bias.data[0] = float("nan")
    with pytest.raises(
        SldError, match="diverged at step 1[67]"
    ):  # the scale of losses was halved from 65536 to 1
        train(training_sets, network, toy_scenes.config("precision=float16", "epochs=6"), tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_alike(training_sets, whole, precision, tmp_path):
    train(
        training_sets,
        toy_scenes.Toy(),
        toy_scenes.config(f"precision={precision}", "epochs=1"),
        tmp_path,
    )
    ours, theirs = (
        [float(row["loss"]) for row in log(work) if row["loss"]][:4]
        for work in (tmp_path, whole[1])
    )
    assert ours[0] == pytest.approx(theirs[0], rel=0.02) and ours != theirs


def test_batch_normalisation_keeps_its_statistics(training_sets, tmp_path):
    network = toy_scenes.Toy()
    network.layers.insert(1, nn.BatchNorm2d(12))
    before = network.layers[1].weight.detach().clone()
    trained = train(training_sets, network, toy_scenes.config("epochs=1"), tmp_path).network
    assert (
        trained.layers[1].running_mean.abs().max() == 0
        and trained.layers[1].num_batches_tracked == 0
    )
    assert not torch.equal(trained.layers[1].weight, before)


def test_no_block_is_left_out_at_random():
    """Ranks would leave out others, and a resumed run too."""
    from sld_core.models.backbone import RANDOM, trainable

    network, image = (
        _set_training(trainable("efficientnet-b0", RANDOM)),
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )
    assert torch.equal(network(image), network(image))


def test_features_are_normalized_and_their_network_left_alone():
    network = toy_scenes.Toy()
    with torch.no_grad():
        network.layers[2].weight.mul_(torch.logspace(-2, 2, 12)[:, None, None, None])
    images = [
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    normalized, before = NormalizedBackbone(network), network(images[0])
    normalized.fit(images)
    cells_CN = torch.cat([normalized(image) for image in images]).transpose(0, 1).flatten(1)
    assert cells_CN.mean(1).abs().max() < 1e-3 and (cells_CN.std(1)[3:] - 1).abs().max() < 1e-2
    assert torch.equal(network(images[0]), before)


def test_landmarks_move_along_with_the_patch(training_sets):
    """At the place of every visible landmark stands its disc: a colour, where the ground is
    grey."""
    scene = SceneImages(
        training_sets["scene0"],
        0,
        toy_scenes.config(
            "patches=8",
            "scene.buffer.max_rotation_deg=40",
            "scene.buffer.max_scale=2",
            "scene.buffer.channel_shift=0",
        ),
    )
    drawn, hits = scene.draw(range(10), epoch=0), 0
    for image, xy_L2, visibility_L in zip(drawn.image_NPP3, drawn.xy_NL2, drawn.visibility_NL):
        for x, y in xy_L2[visibility_L == Visibility.VISIBLE]:
            if 1 < x < 63 and 1 < y < 63:
                colour = image[int(y), int(x)].astype(int)
                assert colour.max() - colour.min() > 100
                hits += 1
    assert hits > 100


def test_what_a_patch_does_not_show_is_hidden_whatever_it_is_in_the_image(training_sets):
    one = training_sets["scene0"]
    unknown = replace(
        one,
        labels=replace(
            one.labels, visibility_FL=np.full_like(one.labels.visibility_FL, Visibility.UNKNOWN)
        ),
    )
    drawn = SceneImages(unknown, 0, toy_scenes.config("target.sigma_px=2", "patches=8")).draw(
        range(10), 0
    )
    reach = 2 * math.sqrt(2 * math.log(10))
    near = ((drawn.xy_NL2 > -reach) & (drawn.xy_NL2 < 64 + reach)).all(2)
    assert near.any() and not near.all()
    assert (drawn.visibility_NL[near] == Visibility.UNKNOWN).all() and (
        drawn.visibility_NL[~near] == Visibility.HIDDEN
    ).all()


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(training_sets):
    scene = SceneImages(training_sets["scene0"], 0, toy_scenes.config())
    together, alone = scene.draw([1, 2], 3), scene.draw([2], 3)
    assert np.array_equal(together.image_NPP3[1:], alone.image_NPP3) and np.array_equal(
        together.xy_NL2[1:], alone.xy_NL2
    )
    assert not np.array_equal(alone.image_NPP3, scene.draw([2], 4).image_NPP3)


def test_jobs_are_loaded_ahead_and_come_in_order():
    loaded = []
    work = ahead(range(6), lambda job: loaded.append(job) or job**2, threads=2)
    assert next(work) == (0, 0) and 3 not in loaded
    assert list(work) == [(i, i * i) for i in range(1, 6)] and sorted(loaded) == list(range(6))


def test_learning_rates():
    cosine = ScheduleConfig(warm_up=0.2)
    assert [rate(done, cosine) for done in (0.2, 0.6, 1.0)] == pytest.approx([1, 0.5, 0])
    assert 0 < rate(0, cosine) < 0.05 and rate(0.1, cosine) == pytest.approx(0.11 / 0.21)
    halved = ScheduleConfig("halving", warm_up=0.0)  # every 40 of 200 epochs, as SLD*
    assert [rate(epoch / 200, halved) for epoch in (0, 39, 40, 119, 120, 160, 199, 200)] == [
        1,
        1,
        0.5,
        0.25,
        0.125,
        1 / 16,
        1 / 16,
        1 / 16,
    ]


def test_the_backbone_waits_for_the_heads(training_sets, tmp_path):
    config = override(BackboneTrainingConfig(), ["schedule.warm_up=0", "heads_first=0.5"])
    assert [backbone_rate(done, config) for done in (0, 0.49, 0.5, 0.75, 1.0)] == pytest.approx(
        [0, 0, 1, 0.5, 0]
    )
    network = toy_scenes.Toy()
    trained = train(
        training_sets, network, toy_scenes.config("epochs=1", "heads_first=0.99"), tmp_path
    ).network
    assert_equal(trained.state_dict(), toy_scenes.Toy().state_dict())


def test_the_best_epoch_is_kept_and_not_the_last(training_sets, tmp_path):
    trained = train(training_sets, toy_scenes.Toy(), toy_scenes.config("epochs=4"), tmp_path)
    best = torch.load(tmp_path / BEST, weights_only=True)
    scores = {
        float(row["epoch"]): (float(row["recall"]), float(row["found"]))
        for row in log(tmp_path)
        if row["scene"] == "all"
    }
    assert len(scores) == 4 and scores[best["best"]["epoch"]] == max(scores.values())
    kept = {
        name.removeprefix("network."): t
        for name, t in best["backbone"].items()
        if name.startswith("network.")
    }
    assert_equal(trained.network.state_dict(), kept)


def test_heads_come_back_as_they_take_the_networks_own_features(training_sets, whole):
    trained, work = whole
    state, image = (
        torch.load(work / BEST, weights_only=True),
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )
    backbone, head = NormalizedBackbone(toy_scenes.Toy()), TrainingHead(12, 8, 16, True)
    backbone.load_state_dict(state["backbone"])
    head.load_state_dict(
        {name.removeprefix("1."): t for name, t in state["heads"].items() if name.startswith("1.")}
    )
    assert torch.equal(trained.heads["scene1"](trained.network(image)), head(backbone(image)))
