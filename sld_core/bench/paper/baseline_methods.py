"""What `sld bench paper` trains other than heads on a frozen backbone: SLD*, alone, as an ensemble
and with NBE; the multi-scene backbone; and the ACE-like baseline. Every function is the `make` of a
step, as in paper_methods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from sld_core.baselines import ace as coordinate_recipe
from sld_core.baselines import nbe as bearing_recipe
from sld_core.baselines import sld_star as sld_star_recipe
from sld_core.baselines.localize import Baseline, localize
from sld_core.baselines.nbe_model import WithBearings
from sld_core.baselines.sld_star_model import SldStar, SldStarNetwork
from sld_core.bench.paper.methods import ON_IT, RECALL, WEIGHTS, megabytes, row, scene_of
from sld_core.bench.paper.presets import Preset
from sld_core.bench.paper.scenes import Bench, evaluate
from sld_core.config.training import BackboneTrainingConfig
from sld_core.heatmap import ScoreMaps
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone, save_weights, trainable
from sld_core.models.heatmap_head import scores
from sld_core.stages import Done
from sld_core.training import logbook
from sld_core.training import train_backbone as backbone_recipe
from sld_core.training.training_set import upright_angles
from sld_core.training.validate_backbone import SIGMA_CELL

FIGURE, NETWORK = "figure7.png", "network.safetensors"  # in the folder of a step


# SLD* ---------------------------------------------------------------------------------------------


def sld_star(
    bench: Bench, scene: str, seconds: float, points: int, folder: Path, found: dict[str, Done]
) -> dict:
    """One SLD* network for all landmarks, its recall taken at so many times, evenly spread, the end
    among them."""
    p, training_set, curve, spent_s = bench.preset, bench.training_set(scene), [], 0.0

    def watch(step: int, seconds_now: float, model) -> None:
        nonlocal spent_s
        spent_s = seconds_now
        if len(curve) < points - 1 and seconds * (len(curve) + 1) / points <= seconds_now < seconds:
            curve.append((seconds_now, evaluated(bench, scene, model)[RECALL]))

    model, _ = sld_star_recipe.train(
        training_set,
        replace(p.sld_star, seconds=seconds),
        p.scene.buffer,
        p.scene.image.max_side_px,
        p.scene.seed,
        bench.device,
        bench.show,
        watch,
    )
    (network,) = model.networks
    safetensors.torch.save_file(
        {name: t.contiguous() for name, t in network.state_dict().items()}, folder / NETWORK
    )  # NBE goes on from it
    last = baseline_row(bench, scene, "sld_star", model, spent_s, megabytes(network))
    return {
        "rows": [last],
        "curves": {"sld_star": [*curve, (spent_s, last[RECALL])]} if points > 1 else {},
    }


def ensemble(bench: Bench, scene: str, folder: Path, found: dict[str, Done]) -> dict:
    """SLD* as several networks, each for a block of consecutive landmarks, together trained as long
    as the one for all."""
    p, start = bench.preset, time.perf_counter()
    config = replace(p.sld_star, networks=p.ensemble, seconds=p.sld_star_s / p.ensemble)
    model, _ = sld_star_recipe.train_ensemble(
        bench.training_set(scene),
        config,
        p.scene.buffer,
        p.scene.image.max_side_px,
        p.scene.seed,
        bench.device,
        bench.show,
    )
    return {
        "rows": [
            baseline_row(
                bench,
                scene,
                f"sld_star x {p.ensemble}",
                model,
                time.perf_counter() - start,
                megabytes(*model.networks),
            )
        ]
    }


def bearings(bench: Bench, scene: str, folder: Path, found: dict[str, Done]) -> dict:
    """NBE beside the SLD* network of an earlier step: bearings of all landmarks, for those that
    were not detected."""
    p, training_set, (before,) = bench.preset, bench.training_set(scene), found.values()
    network = SldStarNetwork(len(training_set.landmarks))
    network.load_state_dict(safetensors.torch.load_file(before.folder / NETWORK))
    star = SldStar(
        (network.to(bench.device),),
        (range(len(training_set.landmarks)),),
        training_set.landmarks.xyz_L3,
        p.sld_star,
    )
    start = time.perf_counter()
    nbe, _ = bearing_recipe.train(
        training_set,
        bench.backbone(),
        p.bearings,
        p.scene.buffer,
        p.scene.image.max_side_px,
        p.scene.seed,
        bench.device,
        bench.show,
    )
    seconds = time.perf_counter() - start + before.found["rows"][0]["train_s"]
    mb = megabytes(network, nbe.whitening, nbe.network)
    return {
        "rows": [baseline_row(bench, scene, "sld_star + nbe", WithBearings(star, nbe), seconds, mb)]
    }


# the multi-scene backbone -------------------------------------------------------------------------


def backbone(bench: Bench, scenes: Sequence[str], folder: Path, found: dict[str, Done]) -> dict:
    """The default backbone trained on `scenes`, one head each, judged on their queries with those
    heads (Table 2)."""
    p, training_sets = bench.preset, {scene: bench.training_set(scene) for scene in scenes}
    config = backbone_config(p)
    network = trainable(p.scene.backbone, p.scene.backbone_weights)
    trained = backbone_recipe.train(
        training_sets, network, config, folder, bench.device, resume=True, progress=bench.show
    )
    save_weights(trained.network, p.scene.backbone, folder / WEIGHTS, trained.record)
    logbook.curves([folder / logbook.FILE], folder / FIGURE)
    frozen = Backbone(p.scene.backbone, str(folder / WEIGHTS)).to(bench.device)
    times = {
        "train_s": trained.record["seconds"] / len(scenes),
        "mb": megabytes(frozen) / len(scenes),
    }  # shared by all
    rows = []
    for scene, training_set in training_sets.items():
        head = TrainedHead(trained.heads[scene], config)
        localizer = Localizer(
            scene_of(training_set, head, p.scene, upright_angles(training_set.frames)),
            bench.device,
            frozen,
        )
        mine = times | {"mb": times["mb"] + megabytes(head)}
        rows.append(
            row(scene, f"its own head{ON_IT}", localizer, bench.place(scene), mine) | {"table": 2}
        )
    return {"rows": rows, "figure": FIGURE, "record": trained.record}


def backbone_config(preset: Preset) -> BackboneTrainingConfig:
    """Images, augmentation and decoding are those of all methods."""
    return replace(preset.backbone, scene=preset.scene)


class TrainedHead(nn.Module):
    """A head of backbone training as the localizer wants it."""

    def __init__(self, head: nn.Module, config: BackboneTrainingConfig):
        super().__init__()
        self.head, self.loss, self.how = head, config.loss, config.scene.head.heatmap

    @torch.inference_mode()
    def forward(self, features_Chw: torch.Tensor) -> ScoreMaps:
        score_Lhw = scores(self.head(features_Chw[None]).float(), self.loss)[0]
        nothing_2hw, sigma_hw = (
            score_Lhw.new_zeros(2, *score_Lhw.shape[1:]),
            score_Lhw.new_full(score_Lhw.shape[1:], SIGMA_CELL),
        )
        return ScoreMaps(
            score_Lhw, nothing_2hw, sigma_hw, self.how.reach, self.how.power, self.how.threshold
        )


# the ACE-like baseline, and what peers share ------------------------------------------------------


def coordinates(bench: Bench, scene: str, folder: Path, found: dict[str, Done]) -> dict:
    """Scene coordinates of every cell of the frozen default backbone."""
    p, training_set, backbone, spent_s = (
        bench.preset,
        bench.training_set(scene),
        bench.backbone(),
        0.0,
    )

    def watch(step: int, seconds: float, model) -> None:
        nonlocal spent_s
        spent_s = seconds

    start = time.perf_counter()
    model, _ = coordinate_recipe.train(
        training_set,
        backbone,
        p.coordinates,
        p.scene.buffer,
        p.scene.image.max_side_px,
        p.scene.seed,
        bench.device,
        bench.show,
        watch,
    )
    train_s, mb = time.perf_counter() - start, megabytes(model.whitening, model.head)
    return {
        "rows": [baseline_row(bench, scene, "coordinates", model, train_s, mb, train_s - spent_s)]
    }


def evaluated(bench: Bench, scene: str, model: Baseline) -> dict:
    """Accuracy of a baseline on the scene's queries."""
    max_side_px, origin_3 = bench.preset.scene.image.max_side_px, bench.training_set(scene).origin_3
    return evaluate(
        lambda image, camera: localize(model, image, camera, max_side_px),
        bench.place(scene).queries,
        origin_3,
    )


def baseline_row(
    bench: Bench,
    scene: str,
    method: str,
    model: Baseline,
    train_s: float,
    mb: float,
    fill_s: float | None = None,
) -> dict:
    """A row of Table 1."""
    return {
        "table": 1,
        "scene": scene,
        "method": method,
        "train_s": train_s,
        "fill_s": fill_s,
        "mb": mb,
        **evaluated(bench, scene, model),
    }
