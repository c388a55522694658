"""Teaching a scene in a process of its own: `sld teach` is started, followed by its events, and
stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sld_core.stages import MARK
from sld_core.types import SldError

COMMAND = (sys.executable, "-m", "sld_core.cli")
GRACE_S = 1.0  # between asking the process to end and killing it
MISUSE = 2  # exit status of `sld` for input that cannot be used
LOG_LINES, TOLD_LINES = 50, 3
# what surrounds a message in a log: tracebacks of Python, stack traces of C++, argparse's usage
NOISE = re.compile(r'\s{4}|\s*File "|Traceback|\*\*\*|usage: |\S*\.so\b')
# the option of `sld teach` for a source, and the files that tell it
SOURCES = {
    "--scene-data": (MARK, "scene.json", "train_test_val.pkl"),
    "--bag": ("metadata.yaml", "*.mcap", "*.db3"),
    "--frames": ("camera-intrinsics.txt", "*.pose.txt", "seq-*/*.pose.txt"),
}


@dataclass(frozen=True)
class TeachRequest:
    """What to teach; empty or negative options leave the defaults of the core."""

    source: Path  # see source_option
    frame_list: str
    output: Path
    work: Path  # folder for intermediate results
    name: str
    head: str
    landmarks: int
    seed: int
    device: str

    def arguments(self) -> list[str]:
        """The command line of `sld teach`; SldError where the source is nothing that it takes."""
        options = {
            source_option(self.source): str(self.source),
            "--list": self.frame_list,
            "--output": str(self.output),
            "--work": str(self.work),
            "--name": self.name,
            "--head": self.head,
            "--landmarks": str(self.landmarks or ""),
            "--seed": str(self.seed) if self.seed >= 0 else "",
            "--device": self.device,
        }
        given = [f"{option}={value}" for option, value in options.items() if value]
        return ["teach", *given, "--events"]


def source_option(source: Path) -> str:
    """The option of `sld teach` for a map folder or labelled dataset, a rosbag2 recording or a
    folder of frames; SldError for anything else."""
    if source.suffix in (".mcap", ".db3") and source.is_file():
        return "--bag"
    for option, patterns in SOURCES.items():
        if any(next(source.glob(pattern), None) for pattern in patterns):
            return option
    raise SldError(
        f"source {source}: {_what_came(source)}; expected a rosbag2 recording (*.mcap or *.db3), "
        f"the folder of a map ({MARK}), a labelled dataset, or a folder of frames "
        "(camera-intrinsics.txt)"
    )


def _what_came(source: Path) -> str:
    if not source.is_dir():
        return "a file" if source.exists() else "no such file or folder"
    names = sorted(path.name for path in source.iterdir())
    return f"a folder with {', '.join(names[:3]) or 'nothing in it'}{', ...' if names[3:] else ''}"


class TeachProcess:
    """One run. The process writes events to its standard output, one JSON object a line, and its
    log to standard error."""

    def __init__(
        self, request: TeachRequest, log: Callable[[str], None], command: tuple[str, ...] = COMMAND
    ):
        self._process = subprocess.Popen(
            [*command, *request.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._events: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._finished = False
        self._last_log: deque[str] = deque(maxlen=LOG_LINES)
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_log, args=(log,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def next_event(self, timeout_s: float) -> dict | None:
        """The next event, None when there is none yet; an error event when the process ended
        without one."""
        try:
            event = self._events.get(timeout=timeout_s) or self._unexplained_end()
        except queue.Empty:
            return None
        self._finished = event["event"] != "progress"
        return event

    def stop(self) -> None:
        """End the process and all it started: ask (unless it is ending by itself), then kill.
        Returns when it is gone."""
        if not self._finished:
            self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self._signal(signal.SIGKILL)  # also what outlived its parent in the group
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # gone already
            os.killpg(self._process.pid, number)

    def _read_events(self) -> None:
        for line in self._process.stdout:
            try:
                self._events.put(json.loads(line))
            except ValueError:
                self._last_log.append(line.rstrip())
        self._events.put(None)

    def _read_log(self, log: Callable[[str], None]) -> None:
        for line in self._process.stderr:
            self._last_log.append(line.rstrip())
            log(line.rstrip())

    def _unexplained_end(self) -> dict:
        status = self._process.wait()
        self._readers[1].join(1.0)
        lines = last_words(self._last_log)
        if status == MISUSE:
            return {"event": "error", "kind": "bad_input", "text": lines}
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return {"event": "error", "kind": "failed", "text": f"teaching ended with {how}: {lines}"}


def last_words(log: Iterable[str]) -> str:
    """The last lines of a log that say something, in one line."""
    lines = [line.strip() for line in log if line.strip() and not NOISE.match(line)]
    return " | ".join(lines[-TOLD_LINES:])
