"""`sld train plan`: estimates the hours and memory of training a backbone on many scenes."""

from __future__ import annotations

import argparse
import dataclasses

from sld_core.commands.common import add_json, configured, write_json

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
    add_json(parser)
    parser.set_defaults(run=_plan)


def _plan(args) -> None:
    from sld_core.training.plan import PlanConfig, lines, plan

    given = {known.name: getattr(args, known.name) for known in dataclasses.fields(PlanConfig)}
    config = configured(PlanConfig(), [], given)
    made = plan(config)
    print("\n".join(lines(config, made)))
    write_json(args.json, dataclasses.asdict(made))
