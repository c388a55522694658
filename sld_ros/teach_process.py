"""Teaching a scene in a process of its own: `sld teach` with events, started, followed and
stopped."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "sld_core.cli")
GRACE_S = 1.0  # between asking the process to end and killing it


@dataclass(frozen=True)
class TeachRequest:
    """What to teach; empty or negative options leave the defaults of the core."""

    source: Path  # bag or folder of frames
    frame_list: str
    output: Path
    work: Path  # folder for intermediate results
    name: str
    head: str
    landmarks: int
    seed: int
    device: str

    def arguments(self) -> list[str]:
        """The command line of `sld teach`."""
        is_frames = (self.source / "camera-intrinsics.txt").exists()
        options = {
            "--frames" if is_frames else "--bag": str(self.source),
            "--list": self.frame_list,
            "--output": str(self.output),
            "--work": str(self.work),
            "--name": self.name,
            "--head": self.head,
            "--landmarks": str(self.landmarks or ""),
            "--seed": str(self.seed) if self.seed >= 0 else "",
            "--device": self.device,
        }
        return [
            "teach",
            *(f"{option}={value}" for option, value in options.items() if value),
            "--events",
        ]


class TeachProcess:
    """One run. Its standard output are events, one JSON object a line; its standard error is the
    log."""

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
        self._last_log: deque[str] = deque(maxlen=1)
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_log, args=(log,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def next_event(self, timeout_s: float) -> dict | None:
        """The next event, None when there is none yet; an error event when the process ended
        without a last word."""
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
            self._signal(signal.SIGINT)  # on SIGTERM pycolmap would print a stack trace
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)  # also what outlived its parent in the group
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # gone already

    def _read_events(self) -> None:
        for line in self._process.stdout:
            try:
                event = json.loads(line)
                self._events.put(event)
            except ValueError:
                self._last_log.append(line.strip())
        self._events.put(None)

    def _read_log(self, log: Callable[[str], None]) -> None:
        for line in self._process.stderr:
            self._last_log.append(line.strip())
            log(line.rstrip())

    def _unexplained_end(self) -> dict:
        status = self._process.wait()
        self._readers[1].join(1.0)
        return {
            "event": "error",
            "kind": "failed",
            "text": f"teaching ended with status {status}: {' '.join(self._last_log)}",
        }
