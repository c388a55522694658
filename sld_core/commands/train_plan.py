"""`sld train plan`: estimates the hours and memory of training a backbone on many scenes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from sld_core.config.settings import override

HELP = {
    "images": "of each scene",
    "landmarks": "of each scene",
    "gpus": "in total; 0: one machine without GPUs",
    "cores": "per GPU, or of the one machine without GPUs",
    "batch": "images per step and GPU",
    "patches": "per image",
    "patch_px": "side of a patch",
    "width": "channels of the heads",
    "dilated": "heads of the paper's final variant",
    "passes": "over the images of a scene, to fill its feature buffer",
    "buffer_channels": "of a cell in the feature buffer",
    "buffer_cells": "cells per image in the feature buffer",
    "order": "shuffled: a step is one batch; rounds: one batch of every scene",
    "forward_ms": "milliseconds of a 640x480 image through the backbone; 0: measured on a CPU, "
    "guessed for a GPU",
    "network_gb_s": "GB/s at which gradients are exchanged: 1.2 for 10 Gb Ethernet",
}


def add(commands) -> None:
    """`plan` among the subcommands of `sld train`."""
    from sld_core.training.plan import PlanConfig

    parser = commands.add_parser(
        "plan",
        help="estimate hours and memory of training on many scenes",
        description="Nothing is trained. The unit costs and their sources are listed in "
        "training/plan.py.",
    )
    for known in dataclasses.fields(PlanConfig):
        option = "--" + known.name.replace("_", "-")
        text = f"{HELP.get(known.name, '')} (default: {known.default})".strip()
        if isinstance(known.default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(
                option,
                metavar="N" if known.type in ("int", "float") else "NAME",
                help=text,
            )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan here")
    parser.set_defaults(run=_plan)


def _plan(args) -> None:
    from sld_core.training.plan import PlanConfig, lines, plan

    given = {known.name: getattr(args, known.name) for known in dataclasses.fields(PlanConfig)}
    config = override(
        PlanConfig(), [f"{name}={value}" for name, value in given.items() if value is not None]
    )
    made = plan(config)
    print("\n".join(lines(config, made)))
    if args.json:
        from sld_core.files import write_atomically

        write_atomically(
            args.json, (json.dumps(dataclasses.asdict(made), indent=2) + "\n").encode()
        )
