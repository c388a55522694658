"""`sld train plan`: estimates the hours and memory of training a backbone on many scenes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from sld_core.config.settings import override


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
        if isinstance(known.default, bool):
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, help=f"(default: {known.default})"
            )
        else:
            parser.add_argument(
                option,
                metavar="N" if known.type in ("int", "float") else "NAME",
                help=f"(default: {known.default})",
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
