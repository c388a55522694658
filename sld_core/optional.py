"""Packages that not every machine has. They are imported when something of them is first used, so
that the rest of sld works without them."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

from sld_core.runtime import keeping_signals
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
    # pycolmap makes SIGTERM print a stack trace, in which the process may hang
    guard = nullcontext() if name in sys.modules else keeping_signals()
    try:
        with guard:
            return importlib.import_module(name)
    except ImportError as error:
        raise SldError(
            f"{name} is needed here and cannot be imported ({error}); run: pip install {name}"
        ) from None
