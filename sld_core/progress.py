"""Showing the progress of a long job: to a person on a terminal, or to a program as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

from sld_core.types import Progress


class Bar:
    """Progress on the terminal: one line that is rewritten, or, where there is no terminal, a line
    per tenth."""

    def __init__(self):
        self.last = ("", -1)

    def __call__(self, progress: Progress) -> None:
        step = (progress.stage, int(progress.fraction * (100 if sys.stderr.isatty() else 4)))
        if step == self.last:
            return
        loss = f"  loss {progress.loss:.2f}" if progress.loss is not None else ""
        left = (
            f"  about {progress.seconds_left:.0f} s left"
            if progress.seconds_left is not None
            else ""
        )
        text = f"{progress.stage}: {progress.fraction:4.0%}{loss}{left}"
        print(
            f"\r\x1b[K{text}" if sys.stderr.isatty() else text,
            end="" if sys.stderr.isatty() else "\n",
            file=sys.stderr,
            flush=True,
        )
        self.last = step

    def done(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)


class Events:
    """Progress as JSON lines on standard output, at most five a second."""

    def __init__(self):
        self.next = 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() >= self.next or progress.fraction in (0.0, 1.0):
            print(json.dumps({"event": "progress", **dataclasses.asdict(progress)}), flush=True)
            self.next = time.monotonic() + 0.2

    def done(self) -> None:
        pass


class Silent:
    """Progress that nobody wants."""

    def __call__(self, progress: Progress) -> None:
        pass

    def done(self) -> None:
        pass
