"""Heads on a frozen backbone, as `sld bench paper` compares them: each trains on a scene, is judged
on its queries, and returns rows of a table, and points (seconds, recall) of a curve where asked.

Every function is the `make` of a step: it ends in (the step's folder, what earlier steps found)."""

from __future__ import annotations

import copy
import hashlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from sld_core.bench.buffer_fill import measure
from sld_core.bench.paper.scenes import Bench, BenchmarkScene, evaluate
from sld_core.config.scene import SceneConfig
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.scene_file import Scene
from sld_core.spread import spread
from sld_core.stages import Done
from sld_core.training import feature_buffer as buffering
from sld_core.training import feature_map_buffer
from sld_core.training import train_cell_head as cell_recipe
from sld_core.training import train_heatmap_head as heatmap_recipe
from sld_core.training.teach import teach
from sld_core.training.training_set import TrainingSet, upright_angles
from sld_core.types import SceneReport

RECALL = "recall_5cm_5deg"
BACKBONE_STEP, WEIGHTS = (
    "backbone",
    "weights.safetensors",
)  # the step that trains the multi-scene backbone, and its file
ON_IT = ", multi-scene backbone"  # of the names of methods


def taught(bench: Bench, scene: str, kind: str, folder: Path, found: dict[str, Done]) -> dict:
    """The head `kind` by `sld teach`, as the product has it; on the multi-scene backbone where that
    was found."""
    place, weights = bench.place(scene), weights_of(bench, found)
    config = replace(
        bench.preset.scene,
        head=replace(bench.preset.scene.head, kind=kind),
        backbone_weights=weights,
    )
    file = folder / "scene.sld"
    seconds = teach(
        place.frames, file, scene, config, place.work, bench.device, bench.show
    ).report.seconds
    times = {
        "fill_s": seconds["buffer"],
        "train_s": seconds["buffer"] + seconds["head"],
        "mb": file.stat().st_size / 1e6,
    }
    return {
        "rows": [
            row(
                scene,
                kind + (ON_IT if BACKBONE_STEP in found else ""),
                Localizer.load(file, bench.device),
                place,
                times,
            )
        ]
    }


def paper_head(
    bench: Bench, scene: str, seconds: float, points: int, folder: Path, found: dict[str, Done]
) -> dict:
    """The paper's head, trained from the map buffer; on the multi-scene backbone where that was
    found. Its recall is taken at no more than so many times, the end among them."""
    place, training_set, weights, head_config = (
        bench.place(scene),
        bench.training_set(scene),
        weights_of(bench, found),
        bench.preset.scene.head,
    )
    head_config = replace(
        head_config, kind="heatmap", heatmap=replace(head_config.heatmap, max_seconds=seconds)
    )
    config = replace(bench.preset.scene, head=head_config, backbone_weights=weights)
    backbone, angle_rad_F = (
        Backbone(config.backbone, weights).to(bench.device),
        upright_angles(training_set.frames),
    )
    start = time.perf_counter()
    buffer, whitening = feature_map_buffer.fill(
        training_set, angle_rad_F, backbone, config, bench.device, folder, bench.show
    )
    fill_s, on_the_way = time.perf_counter() - start, []
    start = time.perf_counter()
    head, _ = heatmap_recipe.train(
        buffer,
        whitening,
        config,
        bench.device,
        bench.show,
        lambda look, head: on_the_way.append((look.seconds, copy.deepcopy(head))),
    )
    train_s, cached = fill_s + time.perf_counter() - start, CachedBackbone(backbone)
    localizer = lambda head, backbone: Localizer(
        scene_of(training_set, head, config, angle_rad_F), bench.device, backbone
    )
    name = "paper" + (ON_IT if BACKBONE_STEP in found else "")
    last = row(
        scene,
        name,
        localizer(head, backbone),
        place,
        {"fill_s": fill_s, "train_s": train_s, "mb": megabytes(head)},
    )
    curve = [
        (fill_s + seconds, evaluate(localizer(head, cached).localize, place.queries)[RECALL])
        for seconds, head in spread(on_the_way[:-1], points - 1)
    ]
    return {
        "rows": [last],
        "curves": {name: [*curve, (train_s, last[RECALL])]} if points > 1 else {},
    }


def cell_curves(bench: Bench, scene: str, folder: Path, found: dict[str, Done]) -> dict:
    """Recall after trainings of the default head, each twice as long as the one before, on a buffer
    without augmented passes: over the seconds with those of filling it, and without."""
    config, training_set, place, backbone = (
        bench.preset.scene,
        bench.training_set(scene),
        bench.place(scene),
        bench.backbone(),
    )
    angle_rad_F, cached, curve = upright_angles(training_set.frames), CachedBackbone(backbone), []
    start = time.perf_counter()
    buffer, whitening = buffering.fill(
        training_set.frames,
        training_set.labels,
        angle_rad_F,
        backbone,
        config.buffer,
        config.image.max_side_px,
        bench.device,
        config.seed,
        0,
        bench.show,
    )
    fill_s = time.perf_counter() - start
    for k in range(
        bench.preset.curve_points
    ):  # the longest first, which can bear that torch has to get going
        settings = replace(config.head, samples=max(1, config.head.samples >> k))
        start = time.perf_counter()
        cells, _ = cell_recipe.train(
            buffer, len(training_set.landmarks), settings, config.seed, bench.device, bench.show
        )
        train_s = time.perf_counter() - start
        localizer = Localizer(
            scene_of(training_set, SceneHead(whitening.cpu(), cells), config, angle_rad_F),
            bench.device,
            cached,
        )
        curve.append((train_s, evaluate(localizer.localize, place.queries)[RECALL]))
    curve.sort()
    return {
        "curves": {
            "cells": [(fill_s + s, recall) for s, recall in curve],
            "cells, buffer filled before": curve,
        }
    }


def fill(bench: Bench, scene: str, folder: Path, found: dict[str, Done]) -> dict:
    """Seconds of filling the buffer with 1, 2, 4 ... processes on this machine."""
    p = bench.preset
    processes = [2**k for k in range(p.fill_processes.bit_length())]
    return {
        "fill": measure(
            spread(bench.place(scene).frames, p.fill_frames),
            p.scene,
            processes,
            bench.device,
        )
    }


# shared -------------------------------------------------------------------------------------------


def row(scene: str, method: str, localizer: Localizer, place: BenchmarkScene, times: dict) -> dict:
    """A row of Table 1."""
    return {
        "table": 1,
        "scene": scene,
        "method": method,
        **times,
        **evaluate(localizer.localize, place.queries),
    }


def weights_of(bench: Bench, found: dict[str, Done]) -> str:
    """The file of the multi-scene backbone; where no step of a backbone was needed, what the preset
    says."""
    return (
        str(found[BACKBONE_STEP].folder / WEIGHTS)
        if BACKBONE_STEP in found
        else bench.preset.scene.backbone_weights
    )


def scene_of(
    training_set: TrainingSet, head: nn.Module, config: SceneConfig, angle_rad_F: np.ndarray
) -> Scene:
    """The scene that teaching would write, in memory."""
    camera = Counter(f.camera for f in training_set.frames).most_common(1)[0][0]
    landmarks = replace(
        training_set.landmarks, xyz_L3=training_set.landmarks.xyz_L3 + training_set.origin_3
    )
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    return Scene(
        "",
        landmarks,
        training_set.origin_3,
        head,
        camera,
        rolls_rad,
        config,
        SceneReport({}, {}, [], {}),
        training_set.metric,
    )


def megabytes(*networks: nn.Module) -> float:
    """Of weights in float16, as scene files hold them."""
    return sum(2 * t.numel() for network in networks for t in network.state_dict().values()) / 1e6


class CachedBackbone:
    """A backbone that keeps the features of every image it saw: many heads are judged on the same
    queries."""

    def __init__(self, backbone: Backbone):
        self.backbone, self.known = backbone, {}

    def to(self, device: str) -> CachedBackbone:
        return self

    def features(self, image_HW3: np.ndarray, device: str):
        key = hashlib.sha1(np.ascontiguousarray(image_HW3)).digest() + str(image_HW3.shape).encode()
        if key not in self.known:
            self.known[key] = self.backbone.features(image_HW3, device).half()
        return self.known[key].float()
