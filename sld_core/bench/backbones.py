"""`sld bench backbones`: the size of every backbone and its time for one image."""

from __future__ import annotations

import re
import time

import numpy as np

from sld_core.bench.table import print_headings, print_row
from sld_core.commands.common import add_device, add_json, write_json
from sld_core.config.scene import BACKBONES
from sld_core.types import SldError

MAX_SIDE_PX = 4096
COLUMNS = (
    ("backbone", "backbone", 18, "s"),
    ("channels", "channels", 8, "d"),
    ("parameters", "M params", 9, ".2f"),
    ("macs", "G MACs", 8, ".2f"),
    ("p50_ms", "p50 ms", 8, ".1f"),
)


def add(commands) -> None:
    parser = commands.add_parser(
        "backbones",
        help="parameters, multiplications and time per image of every backbone",
        description="Weights are random: that changes neither size nor time and needs no download.",
    )
    parser.add_argument(
        "--only", nargs="+", default=BACKBONES, metavar="NAME", help="backbones (default: all)"
    )
    parser.add_argument(
        "--size", default="640x480", metavar="WxH", help="of the image in pixels (default 640x480)"
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        metavar="N",
        help="images that are timed, after a first one that is not (default 5)",
    )
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args) -> None:
    from sld_core.localizer import check_device

    width, height = _size(args.size)
    if args.repeat < 1:
        raise SldError(f"--repeat {args.repeat}: expected at least 1")
    check_device(args.device)
    print(f"an image of {width}x{height}, {args.device}")
    print_headings(COLUMNS)
    out = {}
    for name in args.only:
        out[name] = measure(name, height, width, args.repeat, args.device)
        millions, billions = out[name]["parameters"] / 1e6, out[name]["macs"] / 1e9
        shown = {"backbone": name, "parameters": millions, "macs": billions}
        print_row(COLUMNS, out[name] | shown)
    write_json(args.json, out)


def measure(name: str, height: int, width: int, repeat: int, device: str) -> dict[str, float]:
    """Channels, parameters, multiplications (MACs) and milliseconds of one image, computed by
    `Backbone` as in a query."""
    import torch

    from sld_core.models.backbone import RANDOM, Backbone
    from sld_core.models.macs import count_macs

    backbone = Backbone(name, RANDOM).to(device)
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        backbone.features(image, device)
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {
        "channels": backbone.channels,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "macs": count_macs(backbone, torch.zeros(1, 3, height, width)),
        "p50_ms": 1000 * float(np.median(seconds[1:])),
    }


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch("([0-9]{1,5})x([0-9]{1,5})", text)
    sides = [int(side) for side in match.groups()] if match else [0, 0]
    if not all(32 <= side <= MAX_SIDE_PX for side in sides):
        raise SldError(
            f"--size {text}: expected WIDTHxHEIGHT, such as 640x480, 32 to {MAX_SIDE_PX} "
            "pixels a side"
        )
    return sides[0], sides[1]
