"""`scene.json`: what the layout of Indoor-6 has no place for, beside its files.

It holds whether the scene is metric, the name of the world frame, and the frames with their exact
cameras (the layout has one focal length), poses and splits. It also lists the files of the data
set: they, and no others, may be replaced by the next one. While a data set is being moved in,
"complete" is false."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sld_core.data.formats.plain_files import MAX_TEXT_BYTES
from sld_core.data.frame_json import frames_from_dict, frames_to_dict
from sld_core.files import read_text
from sld_core.stages import MARK
from sld_core.types import Frame, SldError

NAME, FORMAT, VERSION = "scene.json", "sld scene data", 2
OURS = re.compile(
    r"image-[0-9]{6}\.(color\.jpg|intrinsics\.txt|pose\.txt|depth\.png)|train_test_val\.pkl|"
    r"(landmarks|visibility|unknown)-[0-9]+\.txt"
)


class Damaged(SldError):
    """A scene.json that was cut short or the like, and holds nothing of use."""


@dataclass(frozen=True)
class StoredScene:
    """The frames, with paths in their folder, in the order of the columns of visibility, and the
    split of each: train, val or test."""

    frames: tuple[Frame, ...]
    split_F: tuple[str, ...]
    metric: bool
    world_frame: str
    landmark_count: int


def to_text(folder: Path, stored: StoredScene, files: list[str]) -> str:
    """The JSON text of a complete data set in `folder`, where the images are, or soon will be."""
    content = {
        "metric": bool(stored.metric),
        "world_frame": stored.world_frame,
        "landmarks": stored.landmark_count,
        "split": list(stored.split_F),
        **frames_to_dict(stored.frames, folder),
    }
    return _text(files, complete=True, **content)


def incomplete_text(files: list[str]) -> str:
    """What stands in place of `to_text` while files are moved in."""
    return _text(files, complete=False)


def _text(files: list[str], **content) -> str:
    head = {"format": FORMAT, "version": VERSION, "files": files}
    return json.dumps(head | content, indent=1, allow_nan=False) + "\n"


def read_scene_json(folder: Path) -> StoredScene | None:
    """None where there is no scene.json; SldError where it is damaged, of another version or not
    complete."""
    values = _values(folder)
    if values is None:
        return None
    path = folder / NAME
    if values["version"] != VERSION:
        raise SldError(
            f"{path}: version {values['version']}, this sld reads version {VERSION}; write the "
            "data set again (`sld map all --output` does), or remove the file to read the plain "
            "files alone"
        )
    if values.get("complete") is not True:
        raise SldError(
            f"{folder}: a half-written data set (the writing was interrupted); write it again"
        )
    try:
        frames, split_F = frames_from_dict(values, folder), tuple(values["split"])
        if len(split_F) != len(frames):
            raise SldError(f"{len(split_F)} splits of {len(frames)} frames")
        return StoredScene(
            frames, split_F, values["metric"], values["world_frame"], values["landmarks"]
        )
    except (SldError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: damaged ({error}); write the data set again") from None


def listed_files(folder: Path) -> set[str]:
    """The files that an earlier data set of ours left in `folder`, whether whole or not; none where
    there is no scene.json.

    Names that no data set of ours has are left out: what is listed may be deleted."""
    values = _values(folder) or {}
    return {name for name in values.get("files", ()) if OURS.fullmatch(str(name))}


def own_files(folder: Path) -> set[str]:
    """The files of `folder` that the next data set may replace: those listed. In the folder of a
    map whose scene.json is missing, damaged or not complete, all that have a name of ours: nobody
    else writes there."""
    is_map = (folder / MARK).exists()
    try:
        if not is_map or (_values(folder) or {}).get("complete") is True:
            return listed_files(folder)
    except Damaged:
        if not is_map:
            raise
    return {path.name for path in folder.iterdir() if OURS.fullmatch(path.name)}


def depth_is_metric(folder: Path) -> bool:
    """Whether depth images in `folder` can be in millimetres: not in a data set of ours without
    scale, nor in a map that cannot tell."""
    try:
        values = _values(folder)
    except SldError:  # damaged, or of somebody else
        values = None
    return values.get("metric") is True if values else not (folder / MARK).exists()


def _values(folder: Path) -> dict[str, Any] | None:
    path = folder / NAME
    if not path.exists() and not path.is_symlink():
        return None
    try:
        values = json.loads(read_text(path, MAX_TEXT_BYTES))
    except SldError as error:
        raise Damaged(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{path}: not readable ({str(error).splitlines()[0][:100]}); write the data set "
            "again into another folder"
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SldError(f"{path}: does not belong to a data set of sld; choose another folder")
    if values.get("version") not in range(1, VERSION + 1):
        raise SldError(
            f"{path}: version {values.get('version')}, this sld reads version {VERSION}; install a "
            "matching sld"
        )
    return values
