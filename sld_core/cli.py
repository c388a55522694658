"""The `sld` command: teach a scene, evaluate it, localize images, look at a scene file. Needs no
ROS."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading

from sld_core import runtime
from sld_core.bench import backbones, buffer_fill, landmarks, query, sfm
from sld_core.bench.depth_completion import command as depth_completion
from sld_core.bench.paper import command as paper
from sld_core.commands import evaluate, info, localize, map, teach, train
from sld_core.types import SldError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for input that cannot be used, 1 for
    anything unexpected."""
    runtime.prepare()
    for name in ("SIGTERM", "SIGHUP"):  # end as by ctrl-C, with everything cleaned up
        if threading.current_thread() is threading.main_thread() and hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    events = getattr(args, "events", False)
    try:
        args.run(args)
        return 0
    except SldError as error:
        _fail("bad_input", str(error), events)
        return 2
    except BrokenPipeError:
        return 141  # whoever read the output has seen enough
    except KeyboardInterrupt:
        _fail("canceled", "interrupted", events)
        return 130
    except (
        Exception
    ) as error:  # the last line of defence: one line for the user, the trace for the log
        logging.getLogger(__name__).exception("unexpected error")
        _fail("failed", f"{type(error).__name__}: {error}", events)
        return 1


def _fail(kind: str, text: str, events: bool) -> None:
    text = " ".join(text.split())
    print(f"sld: {text}", file=sys.stderr)
    if events:
        print(json.dumps({"event": "error", "kind": kind, "text": text}), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sld", description="Tell where a camera is from one image, by scene landmarks."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (map, teach, train, evaluate, localize, info):
        command.add(commands)
    benchmarks = commands.add_parser("bench", help="measure speed and accuracy").add_subparsers(
        required=True, metavar="WHAT"
    )
    for benchmark in (query, depth_completion, landmarks, sfm, paper, backbones, buffer_fill):
        benchmark.add(benchmarks)
    return parser


if __name__ == "__main__":
    sys.exit(main())
