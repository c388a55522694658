"""`sld train backbone`: many scenes in, the weights of one backbone out. What is of one scene only,
`sld teach` trains."""

from __future__ import annotations

from math import isnan
from pathlib import Path

from sld_core.commands import train_plan
from sld_core.commands.common import add_device, check_writable, list_path
from sld_core.config.scene import SceneConfig
from sld_core.config.settings import override
from sld_core.config.training import BackboneTrainingConfig
from sld_core.progress import Bar, Silent
from sld_core.types import SldError

MAX_TOLD = 8  # scenes whose check is printed; all are in log.csv


def add(commands) -> None:
    train = commands.add_parser("train", help="train a backbone that all scenes share, or plan to")
    kinds = train.add_subparsers(required=True, metavar="WHAT")
    parser = kinds.add_parser(
        "backbone",
        help="train a backbone on many scenes",
        description="Trains a backbone on many scenes, with a head for each. What it writes is "
        "used with --set backbone=NAME --set "
        "backbone_weights=FILE. Several GPUs: torchrun --nproc-per-node N -m sld_core.cli "
        "train backbone ...",
    )
    parser.add_argument(
        "--scene-data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="labelled dataset of a scene (repeatable)",
    )
    parser.add_argument(
        "--frames",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of frames of a scene (repeatable)",
    )
    parser.add_argument(
        "--list",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the frames to use of --frames: once for each of them, in the same order, or not "
        "at all",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="the weights file to write",
    )
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for checkpoints, log.csv and curves.png",
    )
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
        help="go on with the run in --work if there is one; always with torchrun "
        "--max-restarts, which needs "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, such as epochs=40 or scene.buffer.max_scale=1.6 (repeatable)",
    )
    add_device(parser)
    parser.set_defaults(run=_train)
    train_plan.add(kinds)


def _train(args) -> None:
    config = _config(args)
    _check(args)
    from sld_core.models.backbone import save_weights, trainable, weights_sha256
    from sld_core.training import distributed, logbook, train_backbone

    name, weights = config.scene.backbone, config.scene.backbone_weights
    with distributed.joined(args.device) as world:
        show = Bar() if world.is_main else Silent()
        training_sets = _training_sets(args, config.scene, show, world)
        network = distributed.from_main(lambda: trainable(name, weights, config.scene.seed), world)
        trained = train_backbone.train(
            training_sets, network, config, args.work, args.device, world, args.resume, show
        )
        show.done()
        if world.is_main:
            record = trained.record | {
                "backbone": name,
                "started_from": weights_sha256(name, weights),
            }
            save_weights(trained.network, name, args.output, record)
            logbook.curves([args.work / logbook.FILE], args.work / "curves.png")
            _tell(args.output, record)


def _config(args) -> BackboneTrainingConfig:
    settings = list(args.set)
    settings += [f"scene.backbone={args.backbone}"] if args.backbone is not None else []
    settings += [f"scene.landmarks.count={args.landmarks}"] if args.landmarks is not None else []
    return override(BackboneTrainingConfig(), settings)


def _check(args) -> None:
    """Before anything takes time."""
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


def _training_sets(args, config: SceneConfig, show, world) -> dict:
    """The scenes by name. Each rank makes its share of them, which leaves their tracks in --work;
    then all have all."""
    from sld_core.training import distributed

    sources = [(folder, None, True) for folder in args.scene_data]
    sources += [
        (folder, list_path(listed, folder), False)
        for folder, listed in zip(args.frames, args.list or [None] * len(args.frames))
    ]
    names = _names([folder for folder, _, _ in sources])
    asked = args.landmarks is not None or any(
        setting.startswith("scene.landmarks.count=") for setting in args.set
    )
    make = lambda i: _training_set(
        *sources[i], args.work / "scenes" / names[i], config, asked, show
    )
    if world.size > 1:
        for i in distributed.shard(len(sources), world):
            make(i)
        distributed.barrier(world)
    return distributed.from_main(lambda: {name: make(i) for i, name in enumerate(names)}, world)


def _training_set(
    folder: Path,
    listed: Path | None,
    labelled: bool,
    work: Path,
    config: SceneConfig,
    asked: bool,
    show,
):
    from sld_core.data.formats.indoor6 import read_scene_data
    from sld_core.data.frame_folder import read_frames
    from sld_core.models.backbone import Backbone
    from sld_core.training.training_set import first_landmarks, from_data, from_frames

    work.mkdir(parents=True, exist_ok=True)
    if labelled:
        data = read_scene_data(folder, undistorted=work / "undistorted")
        return from_data(
            first_landmarks(data, config.landmarks.count) if asked else data,
            config.validation_fraction,
        )
    return from_frames(
        read_frames(folder, listed),
        work,
        config,
        Backbone(config.backbone, config.backbone_weights),
        show,
    )


def _names(folders: list[Path]) -> list[str]:
    """Names of folders; a name that comes again gets a number."""
    names = []
    for folder in folders:
        name = folder.resolve().name
        again = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{again + 1}" if again else name)
    return names


def _tell(output: Path, record: dict) -> None:
    best = record["best"]
    print(
        f"{output}: {record['backbone']} trained on {len(record['scenes'])} scenes in "
        f"{record['seconds']:.0f} s, "
        f"epoch {best['epoch']} of {record['config']['epochs']}, "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
    for name, row in list(best["scenes"].items())[-MAX_TOLD:]:
        recall = "" if isnan(row["recall"]) else f", {row['recall']:.0%} within 5 cm / 5 deg"
        found = (
            f"{row['found']:.0%} of the landmarks in the picture found, "
            f"{row['pixel_error']:.1f} px off"
        )
        print(f"held-out frames of {name}: {found}{recall}")
