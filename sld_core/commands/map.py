"""`sld map`: images of a place in, a labelled scene dataset out; all at once or stage by stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from sld_core.commands.common import (
    add_json,
    add_list,
    add_path,
    add_seed,
    add_set,
    configured,
    list_path,
    write_json,
)
from sld_core.config.mapping import MapConfig
from sld_core.data.sources import Source
from sld_core.mapping.pipeline import TABLE, MapJob
from sld_core.metric.distances import parse_distance
from sld_core.progress import Bar
from sld_core.types import SldError

ALL = "all stages: images in, a dataset that `sld teach --scene-data` takes out"
CONTINUES = (
    " Without images it continues an existing map, and repeats the stages whose settings changed."
)
NOT_PRINTED = ("lost", "rejected", "alignment")
MAX_NAMES = 10  # of lost images, on the terminal


def add(commands) -> None:
    parser = commands.add_parser(
        "map",
        help="make a scene dataset: photographs, videos or a bag in, a labelled dataset out",
        description="Makes a labelled scene dataset. Finished stages are not repeated; a killed "
        "run continues where it stopped.",
    )
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    for name, text in ({"all": ALL} | {stage.name: stage.help for stage in TABLE}).items():
        more = CONTINUES if name == "all" else ""
        description = f"{text[0].upper()}{text[1:]}.{more}"
        stage = stages.add_parser(name, help=text, description=description)
        if name in ("all", "frames"):
            _add_source(stage, required=name == "frames")
        if name in ("all", "metric"):
            _add_scale(stage)
        if name in ("all", "depth"):
            stage.add_argument(
                "--model",
                metavar="MODEL",
                help="monocular depth network: an .onnx file, or a transformers folder or hub name",
            )
        text = "folder of the map, new or begun by `sld map`"
        add_path(stage, "--output", "DIR", text, required=True)
        add_seed(stage)
        add_set(stage, "sfm.mapper=global")
        add_json(stage)
        stage.set_defaults(run=_map, stage=name)


def _add_source(parser, required: bool) -> None:
    source = parser.add_mutually_exclusive_group(required=required)
    text = "folder of JPEG or PNG photographs; a session per subfolder"
    add_path(source, "--images", "DIR", text)
    add_path(source, "--video", "FILE", "videos; a session each", nargs="+")
    text = "rosbag2 recording; odometry or TF, depth and CameraInfo are used where there are any"
    add_path(source, "--bag", "DIR", text)
    add_list(parser, "photographs")
    parser.add_argument(
        "--poses",
        action="store_true",
        help="use *.pose.txt beside the photographs (4x4 camera to world, metres)",
    )
    text = (
        "calibration of photographs or videos: a 3x3 matrix, or YAML of camera_calibration "
        "(default: camera-intrinsics.txt among the photographs, else estimated)"
    )
    add_path(parser, "--intrinsics", "FILE", text)


def _add_scale(parser) -> None:
    parser.add_argument(
        "--distance",
        metavar="TEXT",
        help="measured distances, such as 'image-000000 image-000041 3.20' between two cameras, or "
        "'a.jpg:312,200 a.jpg:400,210 1.85' between two points clicked in images (those of the "
        "finished map are image-*.color.jpg in its folder); ';' between several. Used where "
        "odometry and depth are missing, else compared with them",
    )
    parser.add_argument(
        "--tag-size",
        type=float,
        metavar="METRES",
        help="side of the black square of AprilTags in the scene; used like --distance",
    )
    parser.add_argument("--tag-family", metavar="NAME", help="such as apriltag_36h11 (default)")


def _map(args) -> None:
    config = _config(args)
    parse_distance(config.metric.distance)
    _check_model(getattr(args, "model", None))
    source = _source(args) if args.stage in ("all", "frames") else None
    progress = Bar()
    job = MapJob(args.output, config, source, getattr(args, "model", None), progress)
    try:
        found = job.run_all() if args.stage == "all" else _run_one(job, args.stage)
    finally:
        progress.done()
    write_json(args.json, found)
    if args.stage == "all":
        _print_summary(found, args.output)
    else:
        _print_stage(found, args.stage, args.output)


def _check_model(model: str | None) -> None:
    """A mistyped file is named before the minutes of work, not after."""
    if model and model.endswith(".onnx") and not Path(model).is_file():
        raise SldError(f"--model {model}: no such file; expected the ONNX file of a network")


def _run_one(job: MapJob, stage: str) -> dict:
    done = job.run(stage)
    return done.found | {"seconds": {stage: round(done.seconds, 2)}}


def _source(args):
    if args.images is None and (args.list or args.poses):
        raise SldError("--list and --poses belong to --images")
    if args.bag is not None and args.intrinsics is not None:
        raise SldError("--intrinsics belongs to --images and --video; a bag has its CameraInfo")
    if args.images is None and not args.video and args.bag is None:
        if args.intrinsics:
            raise SldError("--intrinsics without images: name --images DIR or --video FILE… too")
        return None
    return Source(
        args.images,
        tuple(args.video or ()),
        args.bag,
        list_path(args.list, args.images),
        args.poses,
        args.intrinsics,
    )


def _config(args) -> MapConfig:
    if getattr(args, "distance", None) is not None and not args.distance.strip(" ;"):
        raise SldError("--distance is empty; expected such as 'image-000000 image-000041 3.20'")
    given = {
        "metric.distance": getattr(args, "distance", None),
        "metric.tag_size_m": getattr(args, "tag_size", None),
        "metric.tag_family": getattr(args, "tag_family", None),
        "seed": args.seed,
    }
    return configured(MapConfig(), args.set, given)


def _print_stage(found: dict, stage: str, output: Path) -> None:
    printed = {key: value for key, value in found.items() if key not in NOT_PRINTED}
    print(json.dumps(printed, indent=1))
    for kind in ("lost", "rejected"):
        for name, reason in list(found.get(kind, {}).items())[:MAX_NAMES]:
            print(f"{kind}: {name}: {reason}", file=sys.stderr)
    if stage != "dataset":
        print(f"the dataset follows with: sld map all --output {output}", file=sys.stderr)


def _print_summary(found: dict, output: Path) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    for line in _lines(found, output):
        # file names may hold bytes that are not text, or characters that the terminal cannot show
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def _lines(found: dict, output: Path) -> Iterator[str]:
    yield (
        f"{output}: {found['registered']} of {found['images']} images placed, "
        f"{found['reprojection_px']:.2f} px, "
        f"{found['landmarks']} landmarks, {sum(found['seconds'].values()):.0f} s "
        f"({', '.join(f'{stage} {s:.0f}' for stage, s in found['seconds'].items())})"
    )
    if found["metric"]:
        frame = f", in the frame {found['world_frame']!r}" if found["world_frame"] else ""
        yield f"in metres, by {found['scale_source']}{frame}"
    else:
        yield (
            "NOT in metres: nothing gave a scale; the localizer will refuse a scene taught from "
            "it. Give --distance, --tag-size, depth or odometry"
        )
    for kind, names in (("lost", found["lost"]), ("left out", found["rejected"])):
        for name, reason in list(names.items())[:MAX_NAMES]:
            yield f"{kind}: {name}: {reason}"
        if len(names) > MAX_NAMES:
            more = len(names) - MAX_NAMES
            yield f"{kind}: … and {more} more; all are in {output / 'report.html'}"
    for note in found["notes"]:
        yield f"note: {note}"
    yield (
        f"look at {output / 'report.html'}; teach with: sld teach --scene-data {output} "
        f"--output {output.name}.sld"
    )
