"""The whole state of a training run in one file, so that a killed run can be resumed exactly."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from sld_core.types import SldError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and lists and dicts of them) atomically: a killed
    process leaves the previous file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises its own over that of a full disk
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise SldError(
            f"{path}: cannot be written ({reason.strerror}); free some space, or name another "
            "folder with --work"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, with tensors on the CPU; no code in the file is run."""
    damaged = f"{path}: not a checkpoint of a training run, or damaged; delete it to start anew"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError):
        raise SldError(damaged) from None
    if not isinstance(state, dict):
        raise SldError(damaged)
    return state


def random_state() -> dict[str, Any]:
    """The state of torch's global generators."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Set torch's generators to a `random_state()`, those of GPUs where this machine has as
    many."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
