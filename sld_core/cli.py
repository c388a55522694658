"""The `sld` command: teach a scene, evaluate it, localize images, look at a scene file. Needs no ROS."""
from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from sld_core import config as configuration
from sld_core import runtime
from sld_core.progress import Bar, Events
from sld_core.types import Progress, SldError


MIN_WORK_BYTES = 500 * 10**6


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for input that cannot be used, 1 for anything unexpected."""
    runtime.prepare()
    for name in ("SIGTERM", "SIGHUP"):  # end as by ctrl-C, with everything cleaned up
        if threading.current_thread() is threading.main_thread() and hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    events = getattr(args, "events", False)
    try:
        args.run(args)
        return 0
    except SldError as error:
        _fail("bad_input", str(error), events)
        return 2
    except BrokenPipeError:
        return 141  # whoever read the output has seen enough
    except KeyboardInterrupt:
        _fail("canceled", "interrupted", events)
        return 130
    except Exception as error:  # the last line of defence: one line for the user, the trace for the log
        logging.getLogger(__name__).exception("unexpected error")
        _fail("failed", f"{type(error).__name__}: {error}", events)
        return 1


def _fail(kind: str, text: str, events: bool) -> None:
    text = " ".join(text.split())
    print(f"sld: {text}", file=sys.stderr)
    if events:
        print(json.dumps({"event": "error", "kind": kind, "text": text}), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sld", description="Tell where a camera is from one image, by scene landmarks.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_teach(commands)
    _add_evaluate(commands)
    _add_localize(commands)
    _add_info(commands)
    _add_bench(commands)
    return parser


def _add_frames(parser, required: bool = True) -> None:
    parser.add_argument("--frames", type=Path, metavar="DIR", required=required,
                        help="folder of frames: camera-intrinsics.txt, *.color.jpg, *.pose.txt (4x4 camera to world, metres)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="text file that names the frames to use (default: all)")


def _add_device(parser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device, cpu (default) or cuda")


# teach --------------------------------------------------------------------------------------------------------------

def _add_teach(commands) -> None:
    parser = commands.add_parser("teach", help="teach a scene: frames or a bag in, one .sld file out",
                                 description="Teach a scene from a drive with known poses. Takes one to three minutes.")
    _add_frames(parser, required=False)
    parser.add_argument("--bag", type=Path, metavar="DIR", help="rosbag2 folder with image, camera_info and TF or odometry")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.sld", help="the scene file to write")
    parser.add_argument("--name", help="name of the scene (default: that of the file)")
    parser.add_argument("--head", choices=("cells", "prototype"), help="cells (default): trained; prototype: no training")
    parser.add_argument("--landmarks", type=int, metavar="N", help="how many landmarks")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of everything random")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep intermediate results here, and reuse them")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.NAME=VALUE", help="change a setting (repeatable)")
    parser.add_argument("--events", action="store_true", help="print progress and result as JSON lines, for programs")
    _add_device(parser)
    parser.set_defaults(run=_teach)


def _teach(args) -> None:
    if (args.frames is None) == (args.bag is None):
        raise SldError("give either --frames DIR or --bag DIR")
    if args.bag is not None and args.list is not None:
        raise SldError("--list names frames of --frames; a bag is thinned by itself (--set bag.max_frames=N)")
    if args.output.suffix != ".sld":
        raise SldError(f"--output {args.output}: a scene file ends in .sld")
    config = _config(args)
    from sld_core.localizer import check_device
    from sld_core.mapping.frames import read_frames
    from sld_core.training.teach import teach
    check_device(args.device)
    _check_writable(args.output)
    show = Events() if args.events else Bar()
    start = time.monotonic()
    with _work_folder(args.work) as work:
        if args.bag is not None:
            from sld_core.mapping.bag import extract_frames
            frames = extract_frames(args.bag, work / "frames", config.bag, show)
        else:
            frames = read_frames(args.frames, _list_path(args))
        seconds = {"frames": time.monotonic() - start}
        scene = teach(frames, args.output, args.name or args.output.stem, config, work, args.device, show, seconds)
    show.done()
    _report_teaching(scene, args, time.monotonic() - start)


def _config(args) -> configuration.SceneConfig:
    settings = list(args.set)
    settings += [f"head.kind={args.head}"] if args.head else []
    settings += [f"landmarks.count={args.landmarks}"] if args.landmarks is not None else []
    settings += [f"seed={args.seed}"] if args.seed is not None else []
    return configuration.override(configuration.SceneConfig(), settings)


def _check_writable(output: Path) -> None:
    """Before the minutes of work, not after."""
    if output.is_dir():
        raise SldError(f"--output {output} is a folder; expected the name of a file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise SldError(f"--output {output}: cannot write there ({error.strerror})") from None


def _list_path(args) -> Path | None:
    if args.list is None or args.list.exists():
        return args.list
    inside = args.frames / args.list
    if not inside.exists():
        raise SldError(f"--list {args.list}: no such file here or in {args.frames}")
    return inside


@contextmanager
def _work_folder(given: Path | None):
    if given is not None:
        try:
            given.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SldError(f"--work {given}: cannot be made a folder ({error.strerror})") from None
        yield given
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < MIN_WORK_BYTES:
        raise SldError(f"{tempfile.gettempdir()} has {free / 1e6:.0f} MB free, {MIN_WORK_BYTES / 1e6:.0f} MB are needed for intermediate "
                       "results; free some, or name another place with --work DIR")
    folder = Path(tempfile.mkdtemp(prefix="sld-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report_teaching(scene, args, seconds: float) -> None:
    report, v = scene.report, scene.report.validation
    if args.events:
        validation = {"frames": v["queries"], "recall_5cm_5deg": v.get("recall_5cm_5deg"),
                      "median_m": _scaled(v.get("median_cm"), 0.01), "median_rad": _scaled(v.get("median_deg"), 3.141592653589793 / 180)}
        print(json.dumps({"event": "done", "scene": str(args.output), "frames": report.counts["frames"],
                          "landmarks": report.counts["landmarks"], "teach_s": seconds, "validation": validation}), flush=True)
        return
    print(f"{args.output}: {report.counts['landmarks']} landmarks from {report.counts['frames']} frames, "
          f"{args.output.stat().st_size / 1e6:.2f} MB, taught in {seconds:.0f} s "
          f"({', '.join(f'{stage} {s:.0f}' for stage, s in report.seconds.items())})")
    if v.get("queries"):
        print(f"held-out frames: {v['queries']}, {v['recall_5cm_5deg']:.0%} within 5 cm / 5 deg")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


# evaluate -----------------------------------------------------------------------------------------------------------

def _add_evaluate(commands) -> None:
    parser = commands.add_parser("evaluate", help="localize frames with known poses and say how good it was")
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    _add_frames(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write a report with pictures")
    _add_device(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(args) -> None:
    from sld_core.evaluate import QueryResult, format_table, summarize
    from sld_core.images import read_image
    from sld_core.localizer import Localizer
    from sld_core.mapping.frames import read_frames
    from sld_core.scene_file import write_atomically
    localizer = Localizer.load(args.scene, args.device)
    frames, show, results, answers = read_frames(args.frames, _list_path(args)), Bar(), [], []
    for i, frame in enumerate(frames):
        answer = localizer.localize(read_image(frame.image_path), frame.camera)
        results.append(QueryResult(frame.name, frame.T_world_camera, answer.pose.T_world_camera if answer.pose else None,
                                   answer.reason, sum(answer.seconds.values())))
        answers.append(answer)
        show(Progress("localizing", (i + 1) / len(frames)))
    show.done()
    metrics = summarize(results, localizer.scene.report, args.scene.stat().st_size)
    print(format_table(metrics))
    if args.json:
        write_atomically(args.json, (json.dumps(metrics, indent=2) + "\n").encode())
    if args.report:
        from sld_core.report import overlay, write_report
        xyz_L3 = localizer.scene.landmarks.xyz_L3
        pictures = [(f"Landmarks found in {f.name}", overlay(read_image(f.image_path), f.camera, a, xyz_L3))
                    for f, a in list(zip(frames, answers))[:: max(1, len(frames) // 3)][:3]]
        write_report(args.report, f"{localizer.scene.name}: {args.frames.name}", metrics, results,
                     scene=localizer.scene.report, landmarks_L3=xyz_L3, overlays=pictures)


# localize -----------------------------------------------------------------------------------------------------------

def _add_localize(commands) -> None:
    parser = commands.add_parser("localize", help="say where images were taken",
                                 description="Prints one JSON object per image: the pose (camera to world, metres) or the reason there is none.")
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--intrinsics", type=Path, metavar="FILE",
                        help="3x3 camera matrix, OpenCV convention (default: the camera that the scene was taught with)")
    _add_device(parser)
    parser.set_defaults(run=_localize)


def _localize(args) -> None:
    from sld_core.images import read_image
    from sld_core.localizer import Localizer
    from sld_core.mapping.frames import read_intrinsics
    localizer = Localizer.load(args.scene, args.device)
    for path in args.images:
        image = read_image(path)
        height, width = image.shape[:2]
        camera = read_intrinsics(args.intrinsics, width, height) if args.intrinsics else localizer.scene.camera
        answer = localizer.localize(image, camera)
        out = {"image": str(path), "accepted": answer.accepted, "reason": answer.reason, "detections": len(answer.detections)}
        if answer.pose:
            out |= {"T_world_camera": answer.pose.T_world_camera.round(6).tolist(), "inliers": int(answer.pose.inlier_K.sum()),
                    "reprojection_px": round(answer.pose.reprojection_px, 3),
                    "position_sigma_m": round(answer.pose.position_sigma_m, 5),
                    "rotation_sigma_rad": round(answer.pose.rotation_sigma_rad, 6)}
        print(json.dumps(out), flush=True)


# info ---------------------------------------------------------------------------------------------------------------

def _add_info(commands) -> None:
    parser = commands.add_parser("info", help="show what a scene file holds")
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.set_defaults(run=_info)


def _info(args) -> None:
    from sld_core import scene_file
    scene = scene_file.load(args.scene)
    low, high = scene.landmarks.xyz_L3.min(0), scene.landmarks.xyz_L3.max(0)
    camera, report = scene.camera, scene.report
    rows = {"name": scene.name, "file": f"{args.scene.stat().st_size:,d} bytes", "landmarks": len(scene.landmarks),
            "extent": " x ".join(f"{s:.1f}" for s in high - low) + " m", "backbone": scene.config.backbone,
            "head": scene.config.head.kind, "weights": f"{sum(p.numel() for p in scene.head.state_dict().values()):,d}",
            "camera": f"{camera.width}x{camera.height}, fx {camera.fx:.1f}, fy {camera.fy:.1f}, cx {camera.cx:.1f}, cy {camera.cy:.1f}",
            "taught in": f"{report.teach_s:.0f} s ({', '.join(f'{k} {v:.1f}' for k, v in report.seconds.items())})",
            "counts": ", ".join(f"{k} {v}" for k, v in report.counts.items())}
    if report.validation.get("queries"):
        v = report.validation
        rows["held-out frames"] = f"{v['queries']}, {v['recall_5cm_5deg']:.0%} within 5 cm / 5 deg"
    for key, value in rows.items():
        print(f"{key:16s} {value}")


# bench --------------------------------------------------------------------------------------------------------------

def _add_bench(commands) -> None:
    from sld_core import bench
    parser = commands.add_parser("bench", help="measure speed and accuracy")
    bench.add_arguments(parser.add_subparsers(required=True, metavar="WHAT"))


if __name__ == "__main__":
    sys.exit(main())
