"""`sld bench paper`: the paper's comparisons on your scenes, at a scale that fits the machine."""

from __future__ import annotations

import os
from pathlib import Path

from sld_core.bench.paper.presets import PRESETS, SCENES, scaled_down
from sld_core.commands.common import add_path, add_set, check_writable, configured
from sld_core.types import SldError

SHARED = Path("../shared/data")  # of the recorded sets, beside a checkout of this repository


def add(commands) -> None:
    """`paper` among the subcommands of `sld bench`."""
    parser = commands.add_parser(
        "paper",
        help="measure the paper's tables, speed-up and curves",
        description="Trains and evaluates every method. Each step is kept in DIR/steps, and a "
        "second call continues. Writes paper.md, pictures and metrics.json.",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="cpu",
        help="the scale: cpu (default) takes under an hour on 2 cores; gpu",
    )
    add_path(parser, "--output", "DIR", "folder of steps and results", required=True)
    parser.add_argument(
        "--scenes",
        nargs="+",
        default=list(SCENES),
        metavar="NAME",
        help="recorded sets; the multi-scene backbone does not see the first, which the headlines "
        f"are of (default: {' '.join(SCENES)})",
    )
    text = f"folder of the recorded sets (default {SHARED})"
    add_path(parser, "--data", "DIR", text, default=SHARED)
    parser.add_argument("--landmarks", type=int, metavar="N", help="per scene, for all methods")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="of SLD* and of the multi-scene backbone, unless their time ends before",
    )
    parser.add_argument(
        "--resolution", type=int, metavar="PX", help="longer side to which images are scaled down"
    )
    add_set(parser, "sld_star_s=60 or scene.head.samples=100000")
    parser.add_argument("--device", help="torch device (default: cpu; with preset gpu: cuda)")
    parser.set_defaults(run=_paper)


def _paper(args) -> None:
    from sld_core.bench.paper import plan, report, steps
    from sld_core.bench.paper.scenes import Bench
    from sld_core.config.settings import to_dict
    from sld_core.localizer import check_device
    from sld_core.progress import Bar
    from sld_core.training.run import Run

    given = {
        "scene.landmarks.count": args.landmarks,
        "scene.image.max_side_px": args.resolution,
        "sld_star.epochs": args.epochs,
        "backbone.epochs": args.epochs,
    }
    preset = configured(PRESETS[args.preset], args.set, given)
    device = args.device or ("cuda" if args.preset == "gpu" else "cpu")
    check_device(device)
    if len(set(args.scenes)) < len(args.scenes):
        raise SldError(f"--scenes {' '.join(args.scenes)}: names a scene twice")
    check_writable(args.output / "metrics.json")
    bar = Bar()
    run = Run(device, preset.scene.seed, progress=bar)
    bench = Bench(args.data, args.output, preset, run)
    for scene in args.scenes:
        bench.scene(scene)  # raises before the hours of work where it cannot be read
    done, missing = steps.run(plan.steps(bench, args.scenes), args.output / "steps", preset.limit_s)
    bar.done()
    about = {
        "preset": args.preset,
        "machine": machine(device),
        "scenes": args.scenes,
        "settings": to_dict(preset),
    }
    numbers = report.metrics(done, args.scenes[0], about)
    figures = [
        step.folder / step.found["figure"] for step in done.values() if "figure" in step.found
    ]
    report.write(args.output, numbers, scaled_down(preset, args.scenes), missing, figures)
    print((args.output / "paper.md").read_text())


def machine(device: str) -> str:
    """The machine in words."""
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    processor = f"{cores} CPU cores, {threads} threads of torch {torch.__version__}"
    return processor if device == "cpu" else f"{torch.cuda.get_device_name(device)}, {processor}"
