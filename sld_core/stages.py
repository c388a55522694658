"""Stages of a long job, folder by folder: each is done once, is known to be done, and is picked up
where a kill left it."""

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
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # which only writing meets
MARK, IN_MAP = (
    "sld-map.json",
    "work",
)  # of the folder of a map: the file that says so, and the folder of its stages


@dataclass(frozen=True)
class Done:
    """A stage that is complete: its folder, the key of its inputs and settings, what it found
    (JSON), and how long it took. `made` differs each time it is made anew: later stages depend on
    it, for not everything comes out the same twice. `settings` (name -> value, JSON) are told to
    people who ask what changed; what counts is the key."""

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

    A partial folder of the same key, which a killed run left, is handed to `make` again; of another
    key it is emptied."""
    done = read_record(folder)
    if done is not None and done.key == key:
        log.info("%s is up to date", folder.name)
        return done
    partial = folder.with_name(folder.name + ".partial")
    with _named("written", folder):
        if _key_in(partial) != key:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_atomically(partial / RECORD, json.dumps({"key": key}).encode())
    start = time.monotonic()
    with _named("used", folder):  # to read and to write files: which of both it was, nobody says
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
    with _named("written", folder):
        write_atomically(partial / RECORD, json.dumps(record, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return Done(folder, key, found, seconds, made, settings or {})


@contextmanager
def _named(verb: str, folder: Path) -> Iterator[None]:
    """An OSError as an SldError: which file, or else the stage of which folder, cannot be
    `verb`."""
    try:
        yield
    except OSError as error:
        verb = "written" if error.errno in NO_ROOM else verb
        raise SldError(
            f"{error.filename or folder}: cannot be {verb} ({error.strerror or error})"
        ) from None


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
    """Have the stage of `folder` made anew; what it holds stays until that has been done."""
    try:
        (folder / RECORD).unlink(missing_ok=True)
    except OSError as error:
        raise SldError(f"{error.filename}: cannot be removed ({error.strerror})") from None


def _key_in(folder: Path) -> str | None:
    try:
        return json.loads((folder / RECORD).read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
