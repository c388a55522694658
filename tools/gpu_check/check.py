"""`tools/gpu_check.sh`: what only a GPU shows, in a few minutes and one table, beside the CPU of
the same machine.

Each step is a process of its own with a time limit. A step that lacks a package is skipped, and one
that fails does not stop the others. Landmarks come from depth images, so that no step needs
structure from motion but those that are about it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpu_check.labels_from_depth import label_by_depth
from gpu_check.steps import WEIGHTS, WITHOUT_WEIGHTS, Check, Step, missing, plan
from sld_core.bench.paper.command import machine
from sld_core.config.scene import LandmarkConfig, SceneConfig
from sld_core.data.formats.indoor6 import write_scene_data
from sld_core.data.frame_folder import read_frames
from sld_core.files import write_atomically
from sld_core.synthetic import DEMO_CAMERA, Room, drive, write_sequence
from sld_core.types import SldError

FRAMES = tuple(  # the first that is there
    map(Path, ("build/gpu_check/frames", "shared/data/kitchen", "../shared/data/kitchen"))
)


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
    start, rows = time.monotonic(), []
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "log.txt"
    log.write_text("")
    with tempfile.TemporaryDirectory(prefix="sld-gpu-check-") as folder:
        work = Path(folder)
        frames = args.frames or next((path for path in FRAMES if path.is_dir()), None)
        try:
            rows.append(prepare(work, frames, args.small))
            steps = plan(Check(args.device, args.small, work, frames or work / "room"))
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


# running and telling ------------------------------------------------------------------------------


def run(step: Step, left_s: float, log: Path) -> Row:
    """The step, within its time and what is left of all; its output goes to the end of `log`."""
    if lacking := missing(step.needs):
        return Row(step.name, f"skipped: no {', '.join(lacking)}")
    if step.skip:
        return Row(step.name, f"skipped: {step.skip}")
    if left_s < 1:
        return Row(step.name, "skipped: no time left")
    limit_s, start = min(step.limit_s, left_s), time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {step.name}\n".encode())
        file.flush()
        at = file.tell()
        process = subprocess.Popen(
            [sys.executable, *step.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return Row(step.name, f"failed: not done after {limit_s:.0f} s", limit_s)
    finally:
        with suppress(ProcessLookupError):  # it and what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
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
    if lacking := missing(WEIGHTS):
        return f"{WITHOUT_WEIGHTS}: no {', '.join(lacking)}, accuracies mean nothing"
    return SceneConfig().backbone


def _machine(device: str) -> str:
    try:
        return machine(device)
    except (RuntimeError, AssertionError) as error:  # torch has no CUDA
        return f"no GPU: {error}"


if __name__ == "__main__":
    sys.exit(main())
