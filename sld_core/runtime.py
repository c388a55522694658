"""How a process uses the machine, and how it ends. This module imports nothing heavy: entry points
call `prepare` and `on_stop` before they import torch, numpy or ROS."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 1.5  # for an orderly end; every process of sld is gone 2 s after a signal

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

_temporary_folders: set[Path] = set()


def prepare() -> None:
    """Let idle worker threads sleep, and keep freed memory in the process.

    OpenMP threads that wait by spinning take the cores from the robot's other processes; libgomp
    reads how to wait when it is loaded, with torch. A backbone pass allocates and frees hundreds of
    megabytes: by default glibc hands each large block back to the kernel, which zeroes it again
    page by page, up to half of the time of a query."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:
            return  # another C library, with other habits
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 64 * 2**20)


def on_stop(
    end: Callable[[int], None], interrupt: Callable[[int], None] = lambda number: None
) -> None:
    """At the first SIGINT, SIGTERM or SIGHUP call `end(signal)`, once, on a thread of its own. It
    has to see to it that the process ends, whatever the main thread does.

    `interrupt(signal)` is called in the main thread, and may raise; but where that computes in C,
    it comes late. Later signals are ignored, so that nothing interrupts the cleaning up. A signal
    that is ignored stays so (nohup)."""
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def handle(number: int, _frame) -> None:
        if not received:
            received.append(number)
            interrupt(number)

    def watch() -> None:
        # Python's C handler writes each signal here at once, in whatever thread it arrives
        while (number := os.read(reader, 1)[0]) not in STOP_SIGNALS:
            pass
        end(number)

    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="watch", daemon=True).start()
    os.register_at_fork(after_in_child=_default_signals)
    _set_handlers(handle)


def _default_signals() -> None:
    """A forked worker ends at once, and does not write to its parent's pipe."""
    signal.set_wakeup_fd(-1)
    _set_handlers(signal.SIG_DFL)


def _set_handlers(handler) -> None:
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Import a library that installs handlers of its own in here: SIGTERM keeps the one it had."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that is removed at the end, also by `leave`."""
    folder = Path(tempfile.mkdtemp(prefix="sld-"))
    _temporary_folders.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _temporary_folders.discard(folder)


def leave(status: int) -> NoReturn:
    """End the process now, from any thread: what Python would do at its end can wait for threads or
    crash in the destructors of libraries."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    for folder in list(_temporary_folders):
        shutil.rmtree(folder, ignore_errors=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)
