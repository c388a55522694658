"""`sld bench fill`: the time to fill the feature buffer, with several numbers of processes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from sld_core.bench.table import print_headings, print_row
from sld_core.commands.common import (
    add_device,
    add_frames,
    add_json,
    add_set,
    list_path,
    write_json,
)
from sld_core.config.scene import SceneConfig
from sld_core.config.settings import override
from sld_core.progress import Bar
from sld_core.types import Frame, Labels, SldError, Visibility

LANDMARKS, SHOWN = 1000, 200  # of the scene, and visible in each image, as in a typical room
TOLERANCE = 0.02  # of features that different processes compute
COLUMNS = (
    ("processes", "processes", 9, "d"),
    ("seconds", "seconds", 8, ".1f"),
    ("pictures_per_s", "images/s", 9, ".1f"),
    ("speed_up", "speed-up", 8, ".2f"),
    ("same", "same buffer", 12, ""),
)


def add(commands) -> None:
    parser = commands.add_parser(
        "fill",
        help="time the feature buffer with several numbers of processes",
        description="Landmarks are placed at random: the time hardly depends on them.",
    )
    add_frames(parser)
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="numbers of processes to compare (default: 1 2)",
    )
    add_set(parser, "buffer.augmented_passes=1")
    add_json(parser)
    add_device(parser)
    parser.set_defaults(run=_fill)


def _fill(args) -> None:
    from sld_core.data.frame_folder import read_frames
    from sld_core.localizer import check_device

    config = override(SceneConfig(), args.set)
    check_device(args.device)
    frames = read_frames(args.frames, list_path(args.list, args.frames))
    rows = measure(frames, config, args.processes, args.device)
    print_headings(COLUMNS)
    for row in rows:
        print_row(COLUMNS, row | {"same": "yes" if row["same"] else "no"})
    write_json(args.json, rows)


def measure(
    frames: list[Frame], config: SceneConfig, processes: list[int], device: str
) -> list[dict]:
    """One row for each number of processes: seconds of the whole fill, including the start of the
    processes and the whitening; images per second; the speed-up over the first row; and whether the
    buffer is the `same` as the first, its features within TOLERANCE."""
    from sld_core.models.backbone import Backbone
    from sld_core.training import feature_buffer
    from sld_core.training.run import Run
    from sld_core.training.working_images import unrotated

    if min(processes) < 1:
        raise SldError(f"--processes {min(processes)}: expected at least 1")
    backbone = Backbone(config.backbone, config.backbone_weights).to(device)
    labels = random_labels(frames, config.seed)
    images = unrotated(frames, config.image.max_side_px)
    passes = config.buffer.augmented_passes
    bar = Bar()
    run = Run(device, config.seed, progress=bar)
    rows, first = [], None
    for number in processes:
        settings = replace(config.buffer, processes=number)
        start = time.monotonic()
        buffer, _ = feature_buffer.fill(images, labels, backbone, settings, passes, run)
        seconds = time.monotonic() - start
        first = first or buffer
        rows.append(
            {
                "processes": number,
                "seconds": seconds,
                "pictures_per_s": len(frames) * (1 + passes) / seconds,
                "speed_up": rows[0]["seconds"] / seconds if rows else 1.0,
                "same": _same(buffer, first),
            }
        )
    bar.done()
    return rows


def _same(buffer, other) -> bool:
    import torch

    return torch.equal(buffer.landmark_N, other.landmark_N) and torch.allclose(
        buffer.feature_NC, other.feature_NC, atol=TOLERANCE, rtol=TOLERANCE
    )


def random_labels(frames: list[Frame], seed: int) -> Labels:
    """SHOWN of LANDMARKS anywhere in each image, the others hidden."""
    rng = np.random.default_rng(seed)
    visibility_FL = np.full((len(frames), LANDMARKS), Visibility.HIDDEN, np.uint8)
    for row in visibility_FL:
        row[rng.choice(LANDMARKS, SHOWN, replace=False)] = Visibility.VISIBLE
    sizes_F2 = np.array([(f.camera.width, f.camera.height) for f in frames])
    return Labels(visibility_FL, rng.uniform(0, 1, (len(frames), LANDMARKS, 2)) * sizes_F2[:, None])
