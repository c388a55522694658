"""Stages of a long job, a folder each: a stage that is done is not done again, and one that was
killed is continued."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sld_core.files import write_atomically
from sld_core.types import SldError

log = logging.getLogger(__name__)

RECORD = "stage.json"
ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
MARK = "sld-map.json"  # the file that marks the folder of a map
IN_MAP = "work"  # the folder of its stages, in it


@dataclass(frozen=True)
class Done:
    """A stage that is complete: its folder, the key of its inputs and settings, what it found
    (JSON), and how long it took. `made` is new each time the stage is made, and later stages depend
    on it. `settings` (name -> value, JSON) tell people what changed; what counts is the key."""

    folder: Path
    key: str
    found: dict[str, Any]
    seconds: float
    made: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def key_of(*parts: Any) -> str:
    """One hash of anything JSON can hold; equal inputs and settings give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def run(
    folder: Path,
    key: str,
    make: Callable[[Path], dict[str, Any]],
    settings: dict[str, Any] | None = None,
) -> Done:
    """The stage of `folder`, made by `make(partial folder)` unless it is done already with this
    key.

    A partial folder that a killed run left is handed to `make` again if its key is the same, else
    it is emptied first."""
    done = read_record(folder)
    if done is not None and done.key == key:
        log.info("%s is up to date", folder.name)
        return done
    partial = folder.with_name(folder.name + ".partial")
    with explained(folder, "written"):
        if _key_in(partial) != key:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_atomically(partial / RECORD, json.dumps({"key": key}).encode())
    start = time.monotonic()
    with explained(folder, "used"):  # whether reading or writing failed is not known
        found = make(partial)
    seconds = time.monotonic() - start
    made = uuid.uuid4().hex
    record = {
        "key": key,
        "made": made,
        "found": found,
        "seconds": seconds,
        "settings": settings or {},
    }
    with explained(folder, "written"):
        write_atomically(partial / RECORD, json.dumps(record, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return Done(folder, key, found, seconds, made, settings or {})


@contextmanager
def explained(folder: Path, verb: str) -> Iterator[None]:
    """An OSError as an SldError: which file, or else which folder, cannot be `verb`; where its disk
    is full, with the room left."""
    try:
        yield
    except OSError as error:
        if error.errno in ONLY_WRITING:
            verb = "written"
        reason = str(error.strerror or error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += f"; {room(folder)}"
        raise SldError(f"{error.filename or folder}: cannot be {verb} ({reason})") from None


def room(folder: Path) -> str:
    """How much room the disk of a folder has, in words."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return f"{shutil.disk_usage(place).free / 1e6:.0f} MB are free in {place}"


def read_record(folder: Path) -> Done | None:
    """The stage of `folder` if it is complete."""
    try:
        record = json.loads((folder / RECORD).read_text())
        return Done(
            folder,
            str(record["key"]),
            {**record["found"]},
            float(record["seconds"]),
            str(record["made"]),
            {**record.get("settings", {})},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def invalidate(folder: Path) -> None:
    """Have the stage of `folder` made again; what it holds stays until that is done."""
    try:
        (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise SldError(f"{error.filename}: cannot be removed ({error.strerror})") from None


def _key_in(folder: Path) -> str | None:
    try:
        return json.loads((folder / RECORD).read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
