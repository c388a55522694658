"""Nodes as processes: started with parameters and a log file, watched, and ended together."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sld_core.types import SldError

INTERRUPT_S, TERMINATE_S = 4.0, 2.0  # how long a node may take to end, before it is asked harder
POLL_S = 0.005
LAST_LINES = 12


class NodeProcesses:
    """Started nodes; a context manager that ends them all, whatever happens. Each node's output is
    in `logs`/NAME.log."""

    def __init__(self, logs: Path):
        self._logs = logs
        self._running: dict[str, subprocess.Popen] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, parameters: Mapping[str, object] = {}) -> None:
        """Run `module` as a node with these ROS parameters."""
        words = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
        command = [sys.executable, "-P", "-m", module, "--ros-args", *words]
        with open(self._log(name), "wb") as log:
            # a session of its own: ctrl-C reaches this process alone, which then ends the nodes
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for a condition; SldError says what did not happen in time, or which node died, with
        the end of its log."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise SldError(f"{what}: not within {timeout_s:.0f} s; logs are in {self._logs}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raises SldError when a node has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                lines = self._log(name).read_text(errors="replace").splitlines()[-LAST_LINES:]
                raise SldError(
                    f"node {name} ended with status {process.returncode}; its last lines:\n  "
                    + "\n  ".join(lines)
                )

    def stop(self) -> None:
        """Interrupt the nodes, terminate and then kill those that are left, with all they have
        started."""
        for number, patience_s in (
            (signal.SIGINT, INTERRUPT_S),
            (signal.SIGTERM, TERMINATE_S),
            (signal.SIGKILL, TERMINATE_S),
        ):
            alive = [process for process in self._running.values() if process.poll() is None]
            for process in alive:
                os.killpg(process.pid, number)
            deadline = time.monotonic() + patience_s
            while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
                time.sleep(0.05)
        self._running.clear()

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        clean_shared_memory()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def clean_shared_memory() -> None:
    """Remove the Fast DDS segments that killed processes left behind; those in use stay."""
    if tool := shutil.which("fastdds"):
        with contextlib.suppress(subprocess.TimeoutExpired):  # a courtesy: not worth an error
            subprocess.run(
                [tool, "shm", "clean"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=30,
                check=False,
            )
