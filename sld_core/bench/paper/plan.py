"""Which measurements `sld bench paper` makes, in order of worth: what comes last is what a slow
machine leaves out."""

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

# seconds on 2 cores of what has no budget of its own, of a scene with 120 images of 640x480 and 60
# queries
LESSON_S, FILL_S, JUDGE_S = 60.0, 40.0, 15.0
SAMPLE_S = 12e-6  # of training the default head
IMAGE_S = 0.35  # of an epoch of the multi-scene backbone


def steps(bench: Bench, scenes: Sequence[str]) -> list[Step]:
    """The first of `scenes` is the one that the multi-scene backbone never sees; it learns from the
    others and from rooms."""
    first, *others = scenes
    p, own = bench.preset, [*others, *(f"{ROOM}{i}" for i in range(1, bench.preset.rooms + 1))]
    if not own:
        raise SldError(
            "one scene and no rooms: the multi-scene backbone has nothing to learn from; name "
            "more --scenes, or set rooms=1"
        )
    backbone = _backbone(bench, own)
    on_backbone = partial(_on, backbone.name)
    return [
        _cells(bench, first),
        _paper(bench, first, p.paper_s, p.curve_points),
        _sld_star(bench, first, p.sld_star_s, p.curve_points),
        _race(bench, first),
        _prototype(bench, first),
        *(_cells(bench, scene) for scene in others),
        *(_sld_star(bench, scene, p.sld_star_others_s) for scene in others),
        backbone,
        on_backbone(_paper(bench, first, p.paper_s)),
        on_backbone(_cells(bench, first)),
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
        _s(bench, LESSON_S + FILL_S + JUDGE_S + training_s),
        partial(methods.taught, bench, scene, "cells"),
        _heads(bench),
    )


def _prototype(bench: Bench, scene: str) -> Step:
    return Step(
        f"prototype {scene}",
        _s(bench, FILL_S / 2 + JUDGE_S),
        partial(methods.taught, bench, scene, "prototype"),
        _heads(bench),
    )


def _paper(bench: Bench, scene: str, seconds: float, points: int = 1) -> Step:
    return Step(
        f"paper {scene}",
        _s(bench, FILL_S + points * JUDGE_S) + seconds,
        partial(methods.paper_head, bench, scene, seconds, points),
        [_heads(bench), seconds, points],
    )


def _sld_star(bench: Bench, scene: str, seconds: float, points: int = 1) -> Step:
    return Step(
        f"sld_star {scene}",
        _s(bench, 1.5 * points * JUDGE_S) + seconds,
        partial(baseline_methods.sld_star, bench, scene, seconds, points),
        [*_star(bench), seconds, points],
    )


def _race(bench: Bench, scene: str) -> Step:
    p = bench.preset
    training_s = 2 * SAMPLE_S * p.scene.head.samples
    return Step(
        f"race {scene}",
        _s(bench, FILL_S / 2 + p.curve_points * JUDGE_S + training_s),
        partial(methods.cell_curves, bench, scene),
        [_heads(bench), p.curve_points],
    )


def _coordinates(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"coordinates {scene}",
        _s(bench, FILL_S + JUDGE_S) + p.coordinates.seconds,
        partial(baseline_methods.coordinates, bench, scene),
        [_base(bench), to_dict(p.scene.buffer), to_dict(p.coordinates)],
    )


def _bearings(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"nbe {scene}",
        _s(bench, FILL_S + 1.5 * JUDGE_S) + p.bearings.seconds,
        partial(baseline_methods.bearings, bench, scene),
        [*_star(bench), to_dict(p.bearings)],
        needs=(f"sld_star {scene}",),
    )


def _ensemble(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        f"ensemble {scene}",
        _s(bench, p.ensemble * JUDGE_S) + p.sld_star_s,
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
        _s(bench, len(scenes) * (LESSON_S / 2 + JUDGE_S) + IMAGE_S * images * p.backbone.epochs),
        partial(baseline_methods.backbone, bench, scenes),
        [_base(bench), list(scenes), to_dict(baseline_methods.backbone_config(p))],
    )


def _on(backbone: str, step: Step) -> Step:
    """The same head, on the backbone of that step."""
    return replace(step, name=f"{step.name} on {backbone}", needs=(backbone,))


def _fill(bench: Bench, scene: str) -> Step:
    p = bench.preset
    return Step(
        "fill",
        _s(bench, FILL_S * p.fill_processes),
        partial(methods.fill, bench, scene),
        [_base(bench), scene, to_dict(p.scene.buffer), p.fill_frames, p.fill_processes],
    )


# what they depend on ------------------------------------------------------------------------------


def _base(bench: Bench) -> dict:
    """Of every step: where the scenes are, and all settings that are not of one method."""
    scene = {k: v for k, v in to_dict(bench.preset.scene).items() if k not in ("head", "buffer")}
    return {
        "data": str(bench.data.resolve()),
        "frames": bench.preset.max_frames,
        "queries": bench.preset.max_queries,
        "rooms": [bench.preset.room_frames, bench.preset.room_queries],
        "device": bench.device,
        "scene": scene,
    }


def _heads(bench: Bench) -> list:
    return [_base(bench), to_dict(bench.preset.scene.head), to_dict(bench.preset.scene.buffer)]


def _star(bench: Bench) -> list:
    return [_base(bench), to_dict(bench.preset.scene.buffer), to_dict(bench.preset.sld_star)]


def _s(bench: Bench, seconds: float) -> float:
    return bench.preset.pace * seconds
