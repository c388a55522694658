"""`sld teach`: frames, a bag, a COLMAP model or a labelled dataset in, one scene file out."""

from __future__ import annotations

import json
import time
from math import inf
from pathlib import Path

from sld_core.commands.common import (
    add_device,
    add_frames,
    add_path,
    add_seed,
    add_set,
    check_writable,
    configured,
    held_out_text,
    list_path,
    work_folder,
)
from sld_core.config.scene import SceneConfig
from sld_core.progress import Bar, Events, Silent
from sld_core.types import Frame, SceneData, SldError


def add(commands) -> None:
    parser = commands.add_parser(
        "teach",
        help="teach a scene: frames, a bag, a COLMAP model or a dataset in, one .sld file out",
        description="Teach a scene from images with known poses. Takes one to three minutes.",
    )
    add_frames(parser, required=False)
    add_path(parser, "--bag", "DIR", "rosbag2 folder with image, camera_info and TF or odometry")
    text = (
        "model of COLMAP or hloc: the folder of cameras and images (.bin or .txt); its cameras and "
        "poses are used, its points are made anew"
    )
    add_path(parser, "--colmap", "DIR", text)
    text = "folder that the image names of the --colmap model are relative to"
    add_path(parser, "--images", "DIR", text)
    parser.add_argument(
        "--metres-per-unit",
        type=float,
        metavar="S",
        help="scale of the --colmap model (1: it is in metres; default: unknown, and the scene is "
        "not metric)",
    )
    text = "labelled dataset: the output of sld map, or another in the layout of Indoor-6"
    add_path(parser, "--scene-data", "DIR", text)
    for kind in ("landmarks", "visibility"):
        parser.add_argument(
            f"--{kind}-file",
            metavar="NAME",
            help=f"of several files of {kind} in a dataset in the layout of Indoor-6, the one to "
            f"use, such as {kind}/{kind}-300.txt",
        )
    add_path(parser, "--output", "FILE.sld", "the scene file to write", required=True)
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
        help="how many landmarks (default: as many as the place needs, 1000 to 4000; of a "
        "dataset: the first N, default: all)",
    )
    add_seed(parser)
    add_path(parser, "--work", "DIR", "keep intermediate results here, and reuse them")
    add_set(parser, "bag.max_frames=600")
    parser.add_argument(
        "--events",
        action="store_true",
        help="print progress and result as JSON lines, for programs",
    )
    add_device(parser)
    parser.set_defaults(run=_teach)


def _teach(args) -> None:
    _check_sources(args)
    given = {"head.kind": args.head, "landmarks.count": args.landmarks, "seed": args.seed}
    config = configured(SceneConfig(), args.set, given)
    from sld_core.localizer import check_device

    check_device(args.device)
    check_writable(args.output)
    from sld_core.training.distributed import joined

    start = time.monotonic()
    with joined(args.device) as world, work_folder(args.work) as work:
        show = Silent()  # of several processes, only the first reports
        if world.is_main:
            show = Events() if args.events else Bar()
        teach = _from_frames if args.scene_data is None else _from_scene_data
        scene = teach(args, config, work, show, start, world)
    show.done()
    if world.is_main:
        _report_teaching(scene, args, time.monotonic() - start)


def _check_sources(args) -> None:
    """SldError unless the options name one source and only what belongs to it."""
    sources = (args.frames, args.bag, args.colmap, args.scene_data)
    if sum(source is not None for source in sources) != 1:
        raise SldError(
            "give either --frames DIR or --bag DIR or --scene-data DIR or --colmap DIR --images DIR"
        )
    if args.frames is None and args.list is not None:
        raise SldError(
            "--list names frames of --frames; a bag is thinned by itself (--set "
            "bag.max_frames=N), a dataset has its own split"
        )
    if args.scene_data is None and (args.landmarks_file or args.visibility_file):
        raise SldError("--landmarks-file and --visibility-file belong to --scene-data")
    if (args.colmap is None) != (args.images is None):
        raise SldError("--colmap DIR and --images DIR belong together")
    if args.metres_per_unit is not None and (
        args.colmap is None or not 0 < args.metres_per_unit < inf
    ):
        raise SldError("--metres-per-unit belongs to --colmap, and is a number above 0")
    if args.output.suffix != ".sld":
        raise SldError(f"--output {args.output}: a scene file ends in .sld")


def _from_frames(args, config: SceneConfig, work: Path, show, start: float, world):
    from sld_core.training.distributed import from_main
    from sld_core.training.run import Run
    from sld_core.training.teach import SceneOutput, teach

    frames = from_main(lambda: _read_frames(args, config, work, show), world)
    seconds = {"frames": time.monotonic() - start}
    output = SceneOutput(args.output, args.name or args.output.stem, seconds)
    run = Run(args.device, world=world, progress=show)
    metric = args.colmap is None or args.metres_per_unit is not None
    return teach(frames, work, config, output, run, metric)


def _read_frames(args, config: SceneConfig, work: Path, show) -> list[Frame]:
    from sld_core.data.frame_folder import read_frames
    from sld_core.data.sources import Source, teaching_frames

    if args.frames is not None:
        listed = list_path(args.list, args.frames)
        return read_frames(args.frames, listed, split="train", depths=work / "depths")
    source = Source(
        bag=args.bag,
        model=args.colmap,
        images=args.images,
        metres_per_unit=args.metres_per_unit,
    )
    return teaching_frames(source, work / "frames", config.bag, show)


def _from_scene_data(args, config: SceneConfig, work: Path, show, start: float, world):
    from sld_core.data.formats.indoor6 import read_scene_data
    from sld_core.training.distributed import from_main
    from sld_core.training.run import Run
    from sld_core.training.teach import SceneOutput, teach_scene_data
    from sld_core.training.training_set import first_landmarks

    def read() -> SceneData:
        undistorted = work / "undistorted"
        return read_scene_data(
            args.scene_data, args.landmarks_file, args.visibility_file, undistorted
        )

    data = from_main(read, world)
    if args.landmarks is not None or any(
        setting.startswith("landmarks.count=") for setting in args.set
    ):
        data = first_landmarks(data, config.landmarks.count)
    seconds = {"frames": time.monotonic() - start}
    output = SceneOutput(args.output, args.name or args.output.stem, seconds)
    return teach_scene_data(data, config, output, Run(args.device, world=world, progress=show))


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
