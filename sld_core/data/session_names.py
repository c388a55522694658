"""Names as people and other programs gave them to files and folders: in natural order, in lists,
and as labels of sessions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from sld_core.files import read_text
from sld_core.types import SldError

MAX_LIST_BYTES = 50 * 10**6
MAX_LABEL = 300  # characters
NUMBER = 12  # characters left for " (2)" and the like


def natural(text: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 4000 else (-1, part)
        for part in re.split(r"(\d+)", text)
    ]


def read_list(path: Path) -> list[str]:
    """The names in a text file, one a line; they may hold spaces. SldError where one comes twice
    or leads out of the folder that they are relative to."""
    lines = read_text(Path(path), MAX_LIST_BYTES, "a list of names").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) > len(set(names)):
        raise SldError(f"{path}: names {len(names) - len(set(names))} images twice")
    for name in names:
        if len(name) > 1000 or not name.isprintable():
            raise SldError(f"{path}: {name[:40]!r}… is not the name of an image")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SldError(f"{path}: {name!r} leads out of the folder of images")
    return names


def session_labels(names: Iterable[str]) -> dict[str, str]:
    """Name -> label of the session: printable, at most 300 characters, and as like the name as that
    allows. Names may hold no-break spaces, joined emoji or bytes that are no text, and may be very
    long. Labels that would be the same are numbered."""
    names = dict.fromkeys(names)
    # these keep theirs, whatever comes before them
    labels = {name: name for name in names if _label(name) == name}
    taken = set(labels)
    for name in names:
        if name not in labels:
            labels[name] = _free(_label(name), taken)
            taken.add(labels[name])
    return labels


def _label(name: str) -> str:
    text = "".join(map(_printable, name))
    if len(text) > MAX_LABEL:
        text = f"{text[: MAX_LABEL // 2 - NUMBER]}…{text[len(text) - MAX_LABEL // 2 :]}"
    return text if text or not name else "unnamed"


def _printable(c: str) -> str:
    if c.isprintable():
        return c
    if c.isspace():
        return " "
    is_invisible = unicodedata.category(c) == "Cf"  # joiners and marks of direction
    return "" if is_invisible else "\N{REPLACEMENT CHARACTER}"


def _free(label: str, taken: set[str]) -> str:
    free, number = label, 1
    while free in taken:
        number += 1
        free = f"{label[: MAX_LABEL - NUMBER]} ({number})"
    return free
