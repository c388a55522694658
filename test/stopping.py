"""Processes that are sent signals: started, caught at a chosen moment, and waited for."""

import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 8.0  # what ends within 2 s on an idle machine


def start(*arguments):
    """A Python process whose standard output and error are pipes."""
    # tests may run in the background of a script, where SIGINT is ignored and stays so
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until_ready(process, timeout_s=60.0):
    """Until the process has a handler for SIGTERM: from then on a signal has to end it well."""
    deadline = time.monotonic() + timeout_s
    while not _catches(process.pid, signal.SIGTERM):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no handler of SIGTERM"
        time.sleep(0.005)


def end_of(process, timeout_s=PATIENCE_S):
    """Exit status, standard output and standard error of a process that was told to end."""
    try:
        out, error = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        raise AssertionError(f"still there after {timeout_s} s: {out} {error}") from None
    return process.returncode, out, error


def _catches(pid, number):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
