"""`sld bench query`: the time of each step of a query."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from sld_core.bench.table import print_headings, print_row
from sld_core.commands.common import add_device, add_json, write_json
from sld_core.types import SldError

COLUMNS = (
    ("step", "step", 10, "s"),
    ("p50_ms", "p50 ms", 8, ".1f"),
    ("p95_ms", "p95 ms", 8, ".1f"),
)


def add(commands) -> None:
    parser = commands.add_parser(
        "query", help="time the steps of a query: backbone, head, decode, PnP, guided and fine pass"
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="images of the camera the scene was taught with",
    )
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="rounds over the images (default 5)"
    )
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=_query)


def _query(args) -> None:
    if args.repeat < 1:
        raise SldError(f"--repeat {args.repeat}: expected at least 1")
    steps = time_queries(args.scene, args.images, args.repeat, args.device)
    print_headings(COLUMNS)
    out = {}
    for name, seconds in steps.items():
        p50, p95 = 1000 * np.percentile(seconds, [50, 95])
        out[name] = {"p50_ms": float(p50), "p95_ms": float(p95)}
        print_row(COLUMNS, {"step": name} | out[name])
    write_json(args.json, out)


def time_queries(
    scene: Path, images: list[Path], repeat: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each step of each query, with "read" (image file to pixels) and "total". A first
    round over the images is not counted."""
    from sld_core.camera.images import read_image
    from sld_core.localizer import Localizer

    localizer = Localizer.load(scene, device)
    camera = localizer.scene.camera
    steps: dict[str, list[float]] = {}
    for round_ in range(repeat + 1):
        for path in images:
            start = time.perf_counter()
            image = read_image(path)
            read = time.perf_counter() - start
            if image.shape[:2] != (camera.height, camera.width):
                raise SldError(
                    f"{path}: {image.shape[1]}x{image.shape[0]}, the scene's camera is "
                    f"{camera.width}x{camera.height}"
                )
            seconds = {"read": read, **localizer.localize(image, camera).seconds}
            seconds["total"] = sum(seconds.values())
            if round_ == 0:
                continue
            for name, value in seconds.items():
                steps.setdefault(name, []).append(value)
    return steps
