"""The `sld` command: teach a scene, evaluate it, localize images, look at a scene file. Needs no
ROS."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time

from sld_core import runtime


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 2 for input that cannot be used, 1 for
    anything unexpected, 128 + signal when interrupted (130 by ctrl-C).

    Without `argv` it is the command line of this process, and signals to the process end it."""
    events = "--events" in (sys.argv if argv is None else argv)
    stopped: list[int] = []
    running = True
    told = threading.Lock()  # taken by the thread that tells of the interruption

    def interrupt(number: int) -> None:
        if running:
            stopped.append(number)
            raise KeyboardInterrupt

    def interrupted(number: int) -> int:
        if told.acquire(blocking=False):
            _tell("canceled", "interrupted", events)
        return 128 + number

    def end(number: int) -> None:
        time.sleep(runtime.GRACE_S)  # for an orderly end
        runtime.leave(interrupted(number))

    try:
        if argv is None:
            runtime.prepare()
            runtime.on_stop(end, interrupt)
        _run(argv)
        return 0
    except BaseException as error:
        running = False
        # a library in which the interrupt arrived may have made another error of it
        if isinstance(error, KeyboardInterrupt) or stopped and isinstance(error, Exception):
            return interrupted(stopped[0] if stopped else signal.SIGINT)
        return _failed(error, events)
    finally:
        running = False


def _run(argv: list[str] | None) -> None:
    args = _parser().parse_args(argv)
    from sld_core.commands.common import check_writable

    for option in ("json", "report"):
        check_writable(getattr(args, option, None), f"--{option}")
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    # imported here, once signals are taken care of
    from sld_core.bench import backbones, buffer_fill, landmarks, query, sfm
    from sld_core.bench.depth_completion import command as depth_completion
    from sld_core.bench.paper import command as paper
    from sld_core.commands import evaluate, info, localize, teach, train
    from sld_core.commands import map as map_command

    parser = argparse.ArgumentParser(
        prog="sld", description="Tell where a camera is from one image, by scene landmarks."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (map_command, teach, train, evaluate, localize, info):
        command.add(commands)
    benchmarks = commands.add_parser("bench", help="measure speed and accuracy").add_subparsers(
        required=True, metavar="WHAT"
    )
    for benchmark in (query, depth_completion, landmarks, sfm, paper, backbones, buffer_fill):
        benchmark.add(benchmarks)
    return parser


def _failed(error: BaseException, events: bool) -> int:
    from sld_core.types import SldError

    if isinstance(error, SldError):
        _tell("bad_input", str(error), events)
        return 2
    if isinstance(error, BrokenPipeError):
        return 141  # whoever read the output has seen enough
    if not isinstance(error, Exception):
        raise error  # argparse has said what was wrong, or printed its help
    # the last line of defence: one line for the user, the trace for the log
    logging.getLogger(__name__).error("unexpected error", exc_info=error)
    _tell("failed", f"{type(error).__name__}: {error}", events)
    return 1


def _tell(kind: str, text: str, events: bool) -> None:
    text = " ".join(text.split())
    print(f"sld: {text}", file=sys.stderr)
    if events:
        print(json.dumps({"event": "error", "kind": kind, "text": text}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
