"""What `sld bench paper` trains besides heads on a frozen backbone: SLD*, alone, as an ensemble and
with NBE; the multi-scene backbone; and the ACE-like baseline. Every function is the `make` of a
step, as in methods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from sld_core.baselines import ace, nbe, sld_star
from sld_core.baselines.localize import Baseline, localize
from sld_core.bench.paper.methods import (
    ON_BACKBONE,
    RECALL,
    WEIGHTS,
    megabytes,
    row,
    scene_without_report,
)
from sld_core.bench.paper.presets import Preset
from sld_core.bench.paper.scenes import Bench, evaluate
from sld_core.bench.paper.steps import Results
from sld_core.config.training import BackboneTrainingConfig
from sld_core.heatmap import ScoreMaps
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone, save_weights, trainable
from sld_core.training import logbook, train_backbone
from sld_core.training.validate_backbone import score_maps

FIGURE, NETWORK = "figure7.png", "network.safetensors"  # in the folder of a step


# SLD* ---------------------------------------------------------------------------------------------


def sld_star_network(
    bench: Bench, name: str, seconds: float, points: int, folder: Path, results: Results
) -> dict:
    """One SLD* network for all landmarks, trained for at most `seconds`. Its recall is evaluated at
    `points` times, evenly spread, the last at the end."""
    curve, watched_s = [], []

    def watch(step: int, seconds_now: float, model: Baseline) -> None:
        watched_s.append(seconds_now)
        next_point_s = seconds * (len(curve) + 1) / points
        if len(curve) < points - 1 and next_point_s <= seconds_now < seconds:
            curve.append((seconds_now, baseline_accuracy(bench, name, model)[RECALL]))

    config = replace(bench.preset.sld_star, seconds=seconds)
    model, _ = sld_star.train(
        bench.training_set(name), config, bench.preset.scene, bench.run, watch
    )
    (network,) = model.networks
    state = {name: t.contiguous() for name, t in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / NETWORK)  # for the step of NBE
    cost = {"train_s": watched_s[-1], "mb": megabytes(network)}
    last = baseline_row(bench, name, "sld_star", model, cost)
    curves = {"sld_star": [*curve, (watched_s[-1], last[RECALL])]} if points > 1 else {}
    return {"rows": [last], "curves": curves}


def ensemble(bench: Bench, name: str, folder: Path, results: Results) -> dict:
    """SLD* as several networks, each for a block of consecutive landmarks, trained together as long
    as the single one."""
    p, start = bench.preset, time.perf_counter()
    config = replace(p.sld_star, networks=p.ensemble, seconds=p.sld_star_s / p.ensemble)
    model, _ = sld_star.train_ensemble(bench.training_set(name), config, p.scene, bench.run)
    cost = {"train_s": time.perf_counter() - start, "mb": megabytes(*model.networks)}
    return {"rows": [baseline_row(bench, name, f"sld_star x {p.ensemble}", model, cost)]}


def bearings(bench: Bench, name: str, folder: Path, results: Results) -> dict:
    """NBE beside the SLD* network of an earlier step: the bearings of landmarks that were not
    detected."""
    p, training_set = bench.preset, bench.training_set(name)
    (earlier,) = results.values()
    landmarks = len(training_set.landmarks)
    network = sld_star.SldStarNetwork(landmarks)
    network.load_state_dict(safetensors.torch.load_file(earlier.folder / NETWORK))
    star = sld_star.SldStar(
        (network.to(bench.run.device),),
        (range(landmarks),),
        training_set.landmarks.xyz_L3,
        p.sld_star,
    )
    start = time.perf_counter()
    model, _ = nbe.train(training_set, bench.backbone(), p.bearings, p.scene, bench.run)
    cost = {
        "train_s": time.perf_counter() - start + earlier.found["rows"][0]["train_s"],
        "mb": megabytes(network, model.whitening, model.network),
    }
    both = nbe.WithBearings(star, model)
    return {"rows": [baseline_row(bench, name, "sld_star + nbe", both, cost)]}


# the multi-scene backbone -------------------------------------------------------------------------


def multi_scene_backbone(
    bench: Bench, names: Sequence[str], folder: Path, results: Results
) -> dict:
    """The default backbone trained on these scenes, one head each, evaluated on their queries with
    those heads (Table 2)."""
    p, training_sets = bench.preset, {name: bench.training_set(name) for name in names}
    config = backbone_config(p)
    network = trainable(p.scene.backbone, p.scene.backbone_weights)
    trained = train_backbone.train(training_sets, network, config, folder, bench.run, resume=True)
    save_weights(trained.network, p.scene.backbone, folder / WEIGHTS, trained.record)
    logbook.curves([folder / logbook.FILE], folder / FIGURE)
    frozen = Backbone(p.scene.backbone, str(folder / WEIGHTS)).to(bench.run.device)
    shared_mb = megabytes(frozen) / len(names)
    rows = []
    for name, training_set in training_sets.items():
        head = TrainedHead(trained.heads[name], config)
        scene = scene_without_report(training_set, head, p.scene)
        localizer = Localizer(scene, bench.run.device, frozen)
        cost = {
            "train_s": trained.record["seconds"] / len(names),
            "mb": shared_mb + megabytes(head),
        }
        found = row(f"its own head{ON_BACKBONE}", localizer, bench.scene(name), cost)
        rows.append(found | {"table": 2})
    return {"rows": rows, "figure": FIGURE, "record": trained.record}


def backbone_config(preset: Preset) -> BackboneTrainingConfig:
    """With images, augmentation and decoding as for all other methods."""
    return replace(preset.backbone, scene=preset.scene)


class TrainedHead(nn.Module):
    """A head of backbone training, for the localizer."""

    def __init__(self, head: nn.Module, config: BackboneTrainingConfig):
        super().__init__()
        self.head, self.config = head, config

    @torch.inference_mode()
    def forward(self, features_Chw: torch.Tensor) -> ScoreMaps:
        return score_maps(self.head(features_Chw[None]), self.config)


# the ACE-like baseline, and what baselines share --------------------------------------------------


def coordinates(bench: Bench, name: str, folder: Path, results: Results) -> dict:
    """Scene coordinates of every cell of the frozen default backbone."""
    p, backbone, watched_s = bench.preset, bench.backbone(), []
    training_set = bench.training_set(name)
    start = time.perf_counter()
    model, _ = ace.train(
        training_set,
        backbone,
        p.coordinates,
        p.scene,
        bench.run,
        watch=lambda step, seconds, model: watched_s.append(seconds),
    )
    train_s = time.perf_counter() - start
    mb = megabytes(model.whitening, model.head)
    cost = {"train_s": train_s, "fill_s": train_s - watched_s[-1], "mb": mb}
    return {"rows": [baseline_row(bench, name, "coordinates", model, cost)]}


def baseline_accuracy(bench: Bench, name: str, model: Baseline) -> dict:
    """Accuracy of a baseline on the scene's queries."""
    max_side_px = bench.preset.scene.image.max_side_px
    return evaluate(
        lambda image, camera: localize(model, image, camera, max_side_px),
        bench.scene(name).queries,
        bench.training_set(name).origin_3,
    )


def baseline_row(bench: Bench, name: str, method: str, model: Baseline, cost: dict) -> dict:
    """A row of Table 1; `cost` has seconds of training and megabytes."""
    accuracy = baseline_accuracy(bench, name, model)
    return {"table": 1, "scene": name, "method": method, **cost, **accuracy}
