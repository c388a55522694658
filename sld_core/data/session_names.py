"""Names as people and other programs gave them to files and folders: in natural order, and as
labels of sessions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from sld_core.data.formats.scene_json import MAX_LABEL

NUMBER = 12  # characters left for " (2)" and the like


def natural(text: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 4000 else (-1, part)
        for part in re.split(r"(\d+)", text)
    ]


def session_labels(names: Iterable[str]) -> dict[str, str]:
    """Name -> label of the session, of each name once: what a data set can hold, and as like the
    name as that allows. Names may have no-break spaces, joined emoji, bytes that are no text, or no
    end. Labels that would be the same are numbered."""
    names = dict.fromkeys(names)
    labels = {
        name: name for name in names if _label(name) == name
    }  # these keep theirs, whatever comes before them
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
    return (
        "" if unicodedata.category(c) == "Cf" else "\N{REPLACEMENT CHARACTER}"
    )  # joiners and marks of direction show nothing


def _free(label: str, taken: set[str]) -> str:
    free, number = label, 1
    while free in taken:
        number += 1
        free = f"{label[: MAX_LABEL - NUMBER]} ({number})"
    return free
