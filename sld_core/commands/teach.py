"""`sld teach`: frames, a bag or a labelled dataset in, one scene file out."""

from __future__ import annotations

import json
import time
from pathlib import Path

from sld_core.commands.common import (
    add_device,
    add_frames,
    check_writable,
    held_out_text,
    list_path,
    work_folder,
)
from sld_core.config.scene import SceneConfig
from sld_core.config.settings import override
from sld_core.progress import Bar, Events, Silent
from sld_core.types import SldError


def add(commands) -> None:
    parser = commands.add_parser(
        "teach",
        help="teach a scene: frames, a bag or a mapped dataset in, one .sld file out",
        description="Teach a scene from a drive with known poses. Takes one to three minutes.",
    )
    add_frames(parser, required=False)
    parser.add_argument(
        "--bag",
        type=Path,
        metavar="DIR",
        help="rosbag2 folder with image, camera_info and TF or odometry",
    )
    parser.add_argument(
        "--scene-data",
        type=Path,
        metavar="DIR",
        help="labelled dataset: the output of sld map, or another in the layout of Indoor-6",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.sld", help="the scene file to write"
    )
    parser.add_argument("--name", help="name of the scene (default: that of the file)")
    parser.add_argument(
        "--head",
        choices=("cells", "prototype", "heatmap"),
        help="cells (default): trained, a minute; prototype: no training; heatmap: the "
        "paper's, some minutes",
    )
    parser.add_argument(
        "--landmarks",
        type=int,
        metavar="N",
        help="how many landmarks (of a dataset: the first N; default: all)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of everything random")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep intermediate results here, and reuse them"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="change a setting (repeatable)",
    )
    parser.add_argument(
        "--events",
        action="store_true",
        help="print progress and result as JSON lines, for programs",
    )
    add_device(parser)
    parser.set_defaults(run=_teach)


def _teach(args) -> None:
    if sum(source is not None for source in (args.frames, args.bag, args.scene_data)) != 1:
        raise SldError("give either --frames DIR or --bag DIR or --scene-data DIR")
    if args.frames is None and args.list is not None:
        raise SldError(
            "--list names frames of --frames; a bag is thinned by itself (--set "
            "bag.max_frames=N), a dataset has its own split"
        )
    if args.output.suffix != ".sld":
        raise SldError(f"--output {args.output}: a scene file ends in .sld")
    config = _config(args)
    from sld_core.localizer import check_device

    check_device(args.device)
    check_writable(args.output)
    from sld_core.training.distributed import joined

    start = time.monotonic()
    with (
        joined(args.device) as world,
        work_folder(args.work) as work,
    ):  # of several processes, only the first says anything
        show = (Events() if args.events else Bar()) if world.is_main else Silent()
        scene = (_from_frames if args.scene_data is None else _from_scene_data)(
            args, config, work, show, start, world
        )
    show.done()
    if world.is_main:
        _report_teaching(scene, args, time.monotonic() - start)


def _from_frames(args, config: SceneConfig, work: Path, show, start: float, world):
    from sld_core.data.bag import extract_frames
    from sld_core.data.frame_folder import read_frames
    from sld_core.training.distributed import from_main
    from sld_core.training.teach import teach

    if args.bag is not None:
        frames = from_main(
            lambda: extract_frames(args.bag, work / "frames", config.bag, show), world
        )
    else:
        frames = from_main(
            lambda: read_frames(args.frames, list_path(args.list, args.frames)), world
        )
    seconds = {"frames": time.monotonic() - start}
    return teach(
        frames,
        args.output,
        args.name or args.output.stem,
        config,
        work,
        args.device,
        show,
        seconds,
        world,
    )


def _from_scene_data(args, config: SceneConfig, work: Path, show, start: float, world):
    from sld_core.data.formats.indoor6 import read_scene_data
    from sld_core.training.distributed import from_main
    from sld_core.training.teach import teach_scene_data
    from sld_core.training.training_set import first_landmarks

    data = from_main(
        lambda: read_scene_data(args.scene_data, undistorted=work / "undistorted"), world
    )
    if args.landmarks is not None or any(
        setting.startswith("landmarks.count=") for setting in args.set
    ):
        data = first_landmarks(data, config.landmarks.count)
    seconds = {"frames": time.monotonic() - start}
    return teach_scene_data(
        data, args.output, args.name or args.output.stem, config, args.device, show, seconds, world
    )


def _config(args) -> SceneConfig:
    settings = list(args.set)
    settings += [f"head.kind={args.head}"] if args.head else []
    settings += [f"landmarks.count={args.landmarks}"] if args.landmarks is not None else []
    settings += [f"seed={args.seed}"] if args.seed is not None else []
    return override(SceneConfig(), settings)


def _report_teaching(scene, args, seconds: float) -> None:
    report, v = scene.report, scene.report.validation
    if args.events:
        validation = {
            "frames": v["queries"],
            "recall_5cm_5deg": v.get("recall_5cm_5deg"),
            "median_m": _scaled(v.get("median_cm"), 0.01),
            "median_rad": _scaled(v.get("median_deg"), 3.141592653589793 / 180),
        }
        print(
            json.dumps(
                {
                    "event": "done",
                    "scene": str(args.output),
                    "frames": report.counts["frames"],
                    "landmarks": report.counts["landmarks"],
                    "teach_s": seconds,
                    "validation": validation,
                }
            ),
            flush=True,
        )
        return
    print(
        f"{args.output}: {report.counts['landmarks']} landmarks from {report.counts['frames']} "
        "frames, "
        f"{args.output.stat().st_size / 1e6:.2f} MB, taught in {seconds:.0f} s "
        f"({', '.join(f'{stage} {s:.0f}' for stage, s in report.seconds.items())})"
    )
    if v.get("queries"):
        print(f"held-out frames: {held_out_text(v)}")
    if not scene.metric:
        print("not metric: poses are in units of the scene, not in metres")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
