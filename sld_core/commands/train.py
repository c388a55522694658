"""`sld train backbone`: many scenes in, the weights of one backbone out. Heads of single scenes are
trained by `sld teach`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path

from sld_core.commands import train_plan
from sld_core.commands.common import (
    add_device,
    add_path,
    add_set,
    check_writable,
    configured,
    list_path,
)
from sld_core.config.scene import SceneConfig
from sld_core.config.training import BackboneTrainingConfig
from sld_core.progress import Bar, Silent
from sld_core.types import SldError

MAX_PRINTED = 8  # scenes whose validation is printed; all are in log.csv


def add(commands) -> None:
    train = commands.add_parser(
        "train", help="train a backbone that all scenes share, or estimate its cost"
    )
    kinds = train.add_subparsers(required=True, metavar="WHAT")
    parser = kinds.add_parser(
        "backbone",
        help="train a backbone on many scenes",
        description="Trains a backbone on many scenes, with a head for each. Use the weights with "
        "--set backbone=NAME --set backbone_weights=FILE. Several GPUs: torchrun --nproc-per-node "
        "N -m sld_core.cli train backbone ...",
    )
    for option, metavar, text in (
        ("--scene-data", "DIR", "labelled dataset of a scene (repeatable)"),
        ("--frames", "DIR", "folder of frames of a scene (repeatable)"),
        ("--list", "FILE", "names the frames to use: one for each --frames, in order, or none"),
    ):
        add_path(parser, option, metavar, text, action="append", default=[])
    add_path(parser, "--output", "FILE.safetensors", "the weights file to write", required=True)
    text = "folder for checkpoints, log.csv and curves.png"
    add_path(parser, "--work", "DIR", text, required=True)
    parser.add_argument("--backbone", metavar="NAME", help="the network (default: lite0+xfeat)")
    parser.add_argument(
        "--landmarks",
        type=int,
        metavar="N",
        help="landmarks per scene (of a dataset: the first N; default: all)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --work if there is one; needed with torchrun --max-restarts, "
        "which itself needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
    )
    add_set(parser, "epochs=40 or scene.buffer.max_scale=1.6")
    add_device(parser)
    parser.set_defaults(run=_train)
    train_plan.add(kinds)


@dataclass(frozen=True)
class _Source:
    """One scene to learn from."""

    name: str
    folder: Path
    labelled: bool
    list_file: Path | None = None


def _train(args) -> None:
    given = {"scene.backbone": args.backbone, "scene.landmarks.count": args.landmarks}
    config = configured(BackboneTrainingConfig(), args.set, given)
    _check(args)
    from sld_core.models.backbone import save_weights, trainable, weights_sha256
    from sld_core.training import distributed, logbook, train_backbone
    from sld_core.training.run import Run

    name, weights, seed = config.scene.backbone, config.scene.backbone_weights, config.scene.seed
    with distributed.joined(args.device) as world:
        bar = Bar() if world.is_main else Silent()
        run = Run(args.device, seed, world, bar)
        training_sets = _training_sets(args, config.scene, run)
        network = distributed.from_main(lambda: trainable(name, weights, seed), world)
        trained = train_backbone.train(training_sets, network, config, args.work, run, args.resume)
        bar.done()
        if world.is_main:
            started_from = {"backbone": name, "started_from": weights_sha256(name, weights)}
            record = trained.record | started_from
            save_weights(trained.network, name, args.output, record)
            logbook.curves([args.work / logbook.FILE], args.work / "curves.png")
            _print_result(args.output, record)


def _check(args) -> None:
    """Raise SldError before anything takes time."""
    if not args.scene_data and not args.frames:
        raise SldError(
            "give at least one scene, with --scene-data DIR or --frames DIR; two or more make "
            "a backbone that serves new ones"
        )
    if args.list and len(args.list) != len(args.frames):
        raise SldError(
            f"--list is given {len(args.list)} times, --frames {len(args.frames)} times; "
            "expected one for each, or none"
        )
    if args.output.suffix != ".safetensors":
        raise SldError(f"--output {args.output}: a weights file ends in .safetensors")
    from sld_core.localizer import check_device

    check_device(args.device)
    check_writable(args.output)
    check_writable(args.work / "log.csv", "--work")
    from sld_core.training.train_backbone import check_work

    check_work(args.work, args.resume)


def _training_sets(args, config: SceneConfig, run) -> dict:
    """The training sets of all scenes by name. The ranks first make tracks of the scenes, which are
    divided among them, in --work; rank 0 then reads all and sends them to the others."""
    from sld_core.training import distributed

    all_landmarks = args.landmarks is None and not any(
        setting.startswith("scene.landmarks.count=") for setting in args.set
    )
    sources = _sources(args)

    def make(source: _Source):
        work = args.work / "scenes" / source.name
        work.mkdir(parents=True, exist_ok=True)
        if source.labelled:
            return _labelled_training_set(source, work, config, all_landmarks)
        return _training_set(source, work, config, run.progress)

    if run.world.size > 1:
        for i in distributed.shard(len(sources), run.world):
            make(sources[i])
        distributed.barrier(run.world)
    return distributed.from_main(
        lambda: {source.name: make(source) for source in sources}, run.world
    )


def _sources(args) -> list[_Source]:
    names = _names([*args.scene_data, *args.frames])
    sources = [_Source(name, folder, labelled=True) for name, folder in zip(names, args.scene_data)]
    lists = args.list or [None] * len(args.frames)
    for name, folder, given in zip(names[len(sources) :], args.frames, lists):
        sources.append(_Source(name, folder, False, list_path(given, folder)))
    return sources


def _labelled_training_set(source: _Source, work: Path, config: SceneConfig, all_landmarks: bool):
    from sld_core.data.formats.indoor6 import read_scene_data
    from sld_core.training.training_set import first_landmarks, from_data

    data = read_scene_data(source.folder, undistorted=work / "undistorted")
    if not all_landmarks:
        data = first_landmarks(data, config.landmarks.count)
    return from_data(data, config.validation_fraction)


def _training_set(source: _Source, work: Path, config: SceneConfig, progress):
    from sld_core.data.frame_folder import read_frames
    from sld_core.models.backbone import Backbone
    from sld_core.training.training_set import from_frames

    frames = read_frames(source.folder, source.list_file)
    backbone = Backbone(config.backbone, config.backbone_weights)
    return from_frames(frames, work, config, backbone, progress)


def _names(folders: list[Path]) -> list[str]:
    """Names of folders, with a number where a name is repeated."""
    names = []
    for folder in folders:
        name = folder.resolve().name
        earlier = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{earlier + 1}" if earlier else name)
    return names


def _print_result(output: Path, record: dict) -> None:
    best = record["best"]
    print(
        f"{output}: {record['backbone']} trained on {len(record['scenes'])} scenes in "
        f"{record['seconds']:.0f} s, epoch {best['epoch']} of {record['config']['epochs']}, "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    for name, row in list(best["scenes"].items())[-MAX_PRINTED:]:
        recall = "" if isnan(row["recall"]) else f", {row['recall']:.0%} within 5 cm / 5 deg"
        print(
            f"held-out frames of {name}: {row['found']:.0%} of the landmarks in view found, "
            f"{row['pixel_error']:.1f} px off{recall}"
        )
