"""Packages that not every machine has. They are imported when something of them is first used, so
that the rest of sld works without them."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from types import ModuleType
from typing import Any

from sld_core.types import SldError


class LazyModule:
    """Stands for the module `name`. Without that module, whatever needs it raises SldError."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(_import(self._name), attribute)


poselib = LazyModule("poselib")
pycolmap = LazyModule("pycolmap")


def _import(name: str) -> ModuleType:
    first = name not in sys.modules
    handler = signal.getsignal(signal.SIGTERM)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise SldError(
            f"{name} is needed here and cannot be imported ({error}); run: pip install {name}"
        ) from None
    # pycolmap makes SIGTERM print a stack trace, and the process may hang in doing so
    if first and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return module
