"""The progress of a long job: on the terminal, or as JSON lines for a program."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

from sld_core.types import Progress


class Bar:
    """Progress on the terminal: one line that is rewritten, or, without a terminal, a line for each
    quarter of a stage."""

    def __init__(self):
        self.last = ("", -1)
        self.terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        step = (progress.stage, int(progress.fraction * (100 if self.terminal else 4)))
        if step == self.last:
            return
        self.last = step
        text = f"{progress.stage}: {progress.fraction:4.0%}"
        if progress.loss is not None:
            text += f"  loss {progress.loss:.2f}"
        if progress.seconds_left is not None:
            text += f"  about {progress.seconds_left:.0f} s left"
        if self.terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def done(self) -> None:
        if self.terminal:
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
    """No progress."""

    def __call__(self, progress: Progress) -> None:
        pass

    def done(self) -> None:
        pass
