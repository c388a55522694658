"""How this process uses the machine. Entry points call `prepare` before torch is imported."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def prepare() -> None:
    """Let idle worker threads sleep, and keep freed memory in the process.

    A backbone pass allocates and frees hundreds of megabytes. By default glibc hands each large
    block back to the kernel, which zeroes it again page by page: up to half of the time of a query.
    And OpenMP threads that wait by spinning take the cores from the robot's other processes."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:
            return  # another C library, with other habits
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 64 * 2**20)
