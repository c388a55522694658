"""The measurements of `sld bench paper`, the most important first: a slow machine leaves out the
last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sld_core.bench.paper import baseline_methods, methods
from sld_core.bench.paper.methods import BACKBONE_STEP
from sld_core.bench.paper.scenes import ROOM, Bench
from sld_core.bench.paper.steps import Step
from sld_core.config.settings import to_dict
from sld_core.types import SldError

# seconds on 2 cores of what has no budget of its own, for a scene with 120 images of 640x480 and 60
# queries: tracks, landmarks and labels; filling a buffer; evaluation
TRAINING_SET_S, FILL_S, EVALUATE_S = 60.0, 40.0, 15.0
SAMPLE_S = 12e-6  # per sample of training the default head
IMAGE_S = 0.35  # per image and epoch of the multi-scene backbone


def steps(bench: Bench, scenes: Sequence[str]) -> list[Step]:
    """All steps. The multi-scene backbone never sees the first of `scenes`; it learns from the
    others and from rooms."""
    p = bench.preset
    first, *others = scenes
    learned = [*others, *(f"{ROOM}{i}" for i in range(1, p.rooms + 1))]
    if not learned:
        raise SldError(
            "one scene and no rooms: the multi-scene backbone has nothing to learn from; name "
            "more --scenes, or set rooms=1"
        )
    backbone = _backbone(bench, learned)
    return [
        _cells(bench, first),
        _paper(bench, first, p.paper_s, p.curve_points),
        _sld_star(bench, first, p.sld_star_s, p.curve_points),
        _curves(bench, first),
        _prototype(bench, first),
        *(_cells(bench, scene) for scene in others),
        *(_sld_star(bench, scene, p.sld_star_others_s) for scene in others),
        backbone,
        _on_backbone(_paper(bench, first, p.paper_s)),
        _on_backbone(_cells(bench, first)),
        _fill(bench, first),
        _coordinates(bench, first),
        *(_paper(bench, scene, p.paper_others_s) for scene in others),
        *(_prototype(bench, scene) for scene in others),
        _bearings(bench, first),
        *([_ensemble(bench, first)] if p.ensemble > 1 else []),
    ]


# steps of one scene each --------------------------------------------------------------------------


def _cells(bench: Bench, scene: str) -> Step:
    training_s = SAMPLE_S * bench.preset.scene.head.samples
    return Step(
        f"cells {scene}",
        _paced(bench, TRAINING_SET_S + FILL_S + EVALUATE_S + training_s),
        partial(methods.taught_head, bench, scene, "cells"),
        _heads(bench),
    )


def _prototype(bench: Bench, scene: str) -> Step:
    return Step(
        f"prototype {scene}",
        _paced(bench, FILL_S / 2 + EVALUATE_S),
        partial(methods.taught_head, bench, scene, "prototype"),
        _heads(bench),
    )


def _paper(bench: Bench, scene: str, seconds: float, points: int = 1) -> Step:
    return Step(
        f"paper {scene}",
        _paced(bench, FILL_S + points * EVALUATE_S) + seconds,
        partial(methods.paper_head, bench, scene, seconds, points),
        [_heads(bench), seconds, points],
    )


def _sld_star(bench: Bench, scene: str, seconds: float, points: int = 1) -> Step:
    return Step(
        f"sld_star {scene}",
        _paced(bench, 1.5 * points * EVALUATE_S) + seconds,
        partial(baseline_methods.sld_star_network, bench, scene, seconds, points),
        [*_star(bench), seconds, points],
    )


def _curves(bench: Bench, scene: str) -> Step:
    p = bench.preset
    training_s = 2 * SAMPLE_S * p.scene.head.samples
    return Step(
        f"curves {scene}",
        _paced(bench, FILL_S / 2 + p.curve_points * EVALUATE_S + training_s),
        partial(methods.cell_curves, bench, scene),
        [_heads(bench), p.curve_points],
    )


def _coordinates(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"coordinates {scene}",
        _paced(bench, FILL_S + EVALUATE_S) + p.coordinates.seconds,
        partial(baseline_methods.coordinates, bench, scene),
        [_base(bench), to_dict(p.scene.buffer), to_dict(p.coordinates)],
    )


def _bearings(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"nbe {scene}",
        _paced(bench, FILL_S + 1.5 * EVALUATE_S) + p.bearings.seconds,
        partial(baseline_methods.bearings, bench, scene),
        [*_star(bench), to_dict(p.bearings)],
        needs=(f"sld_star {scene}",),
    )


def _ensemble(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"ensemble {scene}",
        _paced(bench, p.ensemble * EVALUATE_S) + p.sld_star_s,
        partial(baseline_methods.ensemble, bench, scene),
        [*_star(bench), p.ensemble, p.sld_star_s],
    )


# steps of several scenes --------------------------------------------------------------------------


def _backbone(bench: Bench, scenes: Sequence[str]) -> Step:
    p = bench.preset
    images = sum(
        p.room_frames if scene.startswith(ROOM) else min(p.max_frames, 250) for scene in scenes
    )
    return Step(
        BACKBONE_STEP,
        _paced(
            bench,
            len(scenes) * (TRAINING_SET_S / 2 + EVALUATE_S) + IMAGE_S * images * p.backbone.epochs,
        ),
        partial(baseline_methods.multi_scene_backbone, bench, scenes),
        [_base(bench), list(scenes), to_dict(baseline_methods.backbone_config(p))],
    )


def _on_backbone(step: Step) -> Step:
    """The same head, on the multi-scene backbone."""
    return replace(step, name=f"{step.name} on {BACKBONE_STEP}", needs=(BACKBONE_STEP,))


def _fill(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        "fill",
        _paced(bench, FILL_S * p.fill_processes),
        partial(methods.fill, bench, scene),
        [_base(bench), scene, to_dict(p.scene.buffer), p.fill_frames, p.fill_processes],
    )


# what steps depend on -----------------------------------------------------------------------------


def _base(bench: Bench) -> dict:
    """What every step depends on: the scenes, and all settings that do not concern one method
    only."""
    scene = {k: v for k, v in to_dict(bench.preset.scene).items() if k not in ("head", "buffer")}
    return {
        "data": str(bench.data.resolve()),
        "frames": bench.preset.max_frames,
        "queries": bench.preset.max_queries,
        "rooms": [bench.preset.room_frames, bench.preset.room_queries],
        "device": bench.run.device,
        "scene": scene,
    }


def _heads(bench: Bench) -> list:
    return [_base(bench), to_dict(bench.preset.scene.head), to_dict(bench.preset.scene.buffer)]


def _star(bench: Bench) -> list:
    return [_base(bench), to_dict(bench.preset.scene.buffer), to_dict(bench.preset.sld_star)]


def _paced(bench: Bench, seconds: float) -> float:
    """Seconds on the machine that the preset is meant for."""
    return bench.preset.pace * seconds
