"""`sld bench fill`: how long the feature buffer takes to fill, against the number of processes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core.commands.common import add_device, add_frames, list_path
from sld_core.config.scene import SceneConfig
from sld_core.config.settings import override
from sld_core.progress import Bar
from sld_core.types import Frame, Labels, SldError, Visibility

LANDMARKS, SHOWN = 1000, 200  # of the scene, and in each image: as many as a camera sees of a room


def add(commands) -> None:
    parser = commands.add_parser(
        "fill",
        help="time the feature buffer against processes",
        description="Landmarks are put at random: how long it takes hardly depends on them.",
    )
    add_frames(parser)
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="how many to compare (default: 1 2)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="change a setting (repeatable)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    add_device(parser)
    parser.set_defaults(run=_fill)


def _fill(args) -> None:
    from sld_core.data.frame_folder import read_frames
    from sld_core.files import write_atomically
    from sld_core.localizer import check_device

    config = override(SceneConfig(), args.set)
    check_device(args.device)
    frames = read_frames(args.frames, list_path(args.list, args.frames))
    rows = measure(frames, config, args.processes, args.device)
    print(
        f"{'processes':>9s} {'seconds':>8s} {'pictures/s':>10s} {'speed-up':>8s}  the same buffer"
    )
    for row in rows:
        same = "yes" if row["same"] else "no"
        print(
            f"{row['processes']:9d} {row['seconds']:8.1f} {row['pictures_per_s']:10.1f} "
            f"{row['speed_up']:8.2f}  {same}"
        )
    if args.json:
        write_atomically(args.json, (json.dumps(rows, indent=2) + "\n").encode())


def measure(
    frames: list[Frame], config: SceneConfig, processes: list[int], device: str
) -> list[dict]:
    """One row for each number of processes: seconds of the whole fill, start of processes and
    whitening included, pictures per second, speed-up over the first row, and whether every cell's
    label is that of the first row and its feature within 0.02 of it."""
    import torch

    from sld_core.models.backbone import Backbone
    from sld_core.training import feature_buffer as buffering

    if min(processes) < 1:
        raise SldError(f"--processes {min(processes)}: expected at least 1")
    backbone, labels = (
        Backbone(config.backbone, config.backbone_weights).to(device),
        random_labels(frames, config.seed),
    )
    rows, first = [], None
    pictures, show = len(frames) * (1 + config.buffer.augmented_passes), Bar()
    for number in processes:
        start = time.monotonic()
        buffer, _ = buffering.fill(
            frames,
            labels,
            np.zeros(len(frames)),
            backbone,
            replace(config.buffer, processes=number),
            config.image.max_side_px,
            device,
            config.seed,
            config.buffer.augmented_passes,
            show,
        )
        seconds = time.monotonic() - start
        first = first or (seconds, buffer)
        close = (
            torch.allclose(buffer.feature_NC, first[1].feature_NC, atol=0.02, rtol=0.02)
            if len(buffer) == len(first[1])
            else False
        )
        rows.append(
            {
                "processes": number,
                "seconds": seconds,
                "pictures_per_s": pictures / seconds,
                "speed_up": first[0] / seconds,
                "same": close and torch.equal(buffer.landmark_N, first[1].landmark_N),
            }
        )
    show.done()
    return rows


def random_labels(frames: list[Frame], seed: int) -> Labels:
    """SHOWN of LANDMARKS anywhere in each image, the others hidden."""
    rng = np.random.default_rng(seed)
    visibility_FL = np.full((len(frames), LANDMARKS), Visibility.HIDDEN, np.uint8)
    for row in visibility_FL:
        row[rng.choice(LANDMARKS, SHOWN, replace=False)] = Visibility.VISIBLE
    sizes_F2 = np.array([(f.camera.width, f.camera.height) for f in frames])
    return Labels(visibility_FL, rng.uniform(0, 1, (len(frames), LANDMARKS, 2)) * sizes_F2[:, None])
