"""Heads on a frozen backbone, as `sld bench paper` compares them.

Every function is the `make` of a step: its last arguments are the step's folder and the results of
earlier steps. It trains on a scene, evaluates on its queries, and returns rows of a table and,
where asked, points (seconds, recall) of a curve."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path

from torch import nn

from sld_core.bench import buffer_fill
from sld_core.bench.cached_backbone import CachedBackbone
from sld_core.bench.paper.scenes import Bench, BenchmarkScene, evaluate
from sld_core.bench.paper.steps import Results
from sld_core.config.scene import SceneConfig
from sld_core.localizer import Localizer
from sld_core.models.backbone import Backbone
from sld_core.models.heads import SceneHead
from sld_core.scene_file import Scene
from sld_core.spread import spread
from sld_core.training import (
    feature_buffer,
    feature_map_buffer,
    train_cell_head,
    train_heatmap_head,
)
from sld_core.training.teach import SceneOutput, scene_of, teach
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import upright
from sld_core.types import SceneReport

RECALL = "recall_5cm_5deg"
# the step that trains the multi-scene backbone, and its file
BACKBONE_STEP, WEIGHTS = "backbone", "weights.safetensors"
ON_BACKBONE = ", multi-scene backbone"  # suffix of a method's name


def taught_head(bench: Bench, name: str, kind: str, folder: Path, results: Results) -> dict:
    """The head `kind` as `sld teach` makes it, on the multi-scene backbone where there is one."""
    scene = bench.scene(name)
    config = replace(
        bench.preset.scene,
        head=replace(bench.preset.scene.head, kind=kind),
        backbone_weights=_weights(bench, results),
    )
    file = folder / "scene.sld"
    taught = teach(scene.frames, scene.work, config, SceneOutput(file, name), bench.run)
    seconds = taught.report.seconds
    cost = {
        "fill_s": seconds["buffer"],
        "train_s": seconds["buffer"] + seconds["head"],
        "mb": file.stat().st_size / 1e6,
    }
    localizer = Localizer.load(file, bench.run.device)
    return {"rows": [row(_method(kind, results), localizer, scene, cost)]}


def paper_head(
    bench: Bench, name: str, seconds: float, points: int, folder: Path, results: Results
) -> dict:
    """The paper's head, trained from the map buffer for at most `seconds`, on the multi-scene
    backbone where there is one. Its recall is evaluated at up to `points` times, the last at the
    end."""
    scene, training_set = bench.scene(name), bench.training_set(name)
    head_config = bench.preset.scene.head
    heatmap = replace(head_config.heatmap, max_seconds=seconds)
    config = replace(
        bench.preset.scene,
        head=replace(head_config, kind="heatmap", heatmap=heatmap),
        backbone_weights=_weights(bench, results),
    )
    backbone = Backbone(config.backbone, config.backbone_weights).to(bench.run.device)
    start = time.perf_counter()
    buffer, whitening = feature_map_buffer.fill(training_set, backbone, config, folder, bench.run)
    fill_s, snapshots = time.perf_counter() - start, []

    def watch(step: int, seconds: float, head: nn.Module, result) -> None:
        snapshots.append((seconds, copy.deepcopy(head)))

    start = time.perf_counter()
    head, _ = train_heatmap_head.train(buffer, whitening, config, bench.run, watch)
    train_s = fill_s + time.perf_counter() - start
    method = _method("paper", results)
    cost = {"fill_s": fill_s, "train_s": train_s, "mb": megabytes(head)}
    localizer = Localizer(
        scene_without_report(training_set, head, config), bench.run.device, backbone
    )
    last = row(method, localizer, scene, cost)
    if points == 1:
        return {"rows": [last], "curves": {}}
    cached, curve = CachedBackbone(backbone), []
    for seconds, snapshot in spread(snapshots[:-1], points - 1):
        localizer = Localizer(
            scene_without_report(training_set, snapshot, config), bench.run.device, cached
        )
        recall = evaluate(localizer.localize, scene.queries)[RECALL]
        curve.append((fill_s + seconds, recall))
    return {"rows": [last], "curves": {method: [*curve, (train_s, last[RECALL])]}}


def cell_curves(bench: Bench, name: str, folder: Path, results: Results) -> dict:
    """Recall after trainings of the default head, each twice as long as the one before, on a buffer
    without augmented passes: over the seconds with and without filling the buffer."""
    config = bench.preset.scene
    training_set, queries = bench.training_set(name), bench.scene(name).queries
    backbone, run = bench.backbone(), bench.run
    cached, curve = CachedBackbone(backbone), []
    images = upright(training_set.frames, config.image.max_side_px)
    landmarks = len(training_set.landmarks)
    start = time.perf_counter()
    buffer, whitening = feature_buffer.fill(
        images, training_set.labels, backbone, config.buffer, 0, run
    )
    fill_s = time.perf_counter() - start
    # the longest first: what torch needs to get started matters least there
    for k in range(bench.preset.curve_points):
        settings = replace(config.head, samples=max(1, config.head.samples >> k))
        start = time.perf_counter()
        cells, _ = train_cell_head.train(buffer, landmarks, settings, run)
        train_s = time.perf_counter() - start
        head = SceneHead(whitening.cpu(), cells)
        localizer = Localizer(scene_without_report(training_set, head, config), run.device, cached)
        curve.append((train_s, evaluate(localizer.localize, queries)[RECALL]))
    curve.sort()
    with_fill = [(fill_s + seconds, recall) for seconds, recall in curve]
    return {"curves": {"cells": with_fill, "cells, buffer filled before": curve}}


def fill(bench: Bench, name: str, folder: Path, results: Results) -> dict:
    """Seconds of filling the buffer with 1, 2, 4 ... processes on this machine."""
    p = bench.preset
    processes = [2**k for k in range(p.fill_processes.bit_length())]
    frames = spread(bench.scene(name).frames, p.fill_frames)
    return {"fill": buffer_fill.measure(frames, p.scene, processes, bench.run.device)}


# shared -------------------------------------------------------------------------------------------


def row(method: str, localizer: Localizer, scene: BenchmarkScene, cost: dict) -> dict:
    """A row of Table 1; `cost` has seconds of training and megabytes."""
    accuracy = evaluate(localizer.localize, scene.queries)
    return {"table": 1, "scene": scene.name, "method": method, **cost, **accuracy}


def megabytes(*networks: nn.Module) -> float:
    """Of weights in float16, as scene files hold them."""
    return sum(2 * t.numel() for network in networks for t in network.state_dict().values()) / 1e6


def _method(name: str, results: Results) -> str:
    return name + (ON_BACKBONE if BACKBONE_STEP in results else "")


def _weights(bench: Bench, results: Results) -> str:
    """The file of the multi-scene backbone where that was trained, else those of the preset."""
    if BACKBONE_STEP in results:
        return str(results[BACKBONE_STEP].folder / WEIGHTS)
    return bench.preset.scene.backbone_weights


def scene_without_report(training_set: TrainingSet, head: nn.Module, config: SceneConfig) -> Scene:
    return scene_of(training_set, head, config, "", SceneReport({}, {}, [], {}))
