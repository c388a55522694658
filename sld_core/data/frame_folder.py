"""Frames with poses from a folder, in any of the layouts that people have."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sld_core.data.formats.posed_folder import PosedFolder
from sld_core.data.formats.seven_scenes import SevenScenes, is_seven_scenes
from sld_core.data.frame_set import FILE, StoredFrames
from sld_core.data.session_names import read_list
from sld_core.types import Frame, SldError


class Layout(Protocol):
    """A way in which images, cameras and poses lie in a folder."""

    def names(self, split: str) -> list[str]:
        """The frames of a split ("train", "test"), in order; all of them where the split is empty
        or the layout has none."""

    def named(self, line: str) -> list[str]:
        """The frames that a line of a list means."""

    def frame(self, name: str) -> Frame:
        """SldError names the file that is missing or cannot be used."""


def read_frames(
    folder: Path, list_path: Path | None = None, split: str = "", depths: Path | None = None
) -> list[Frame]:
    """The frames that `list_path` names (one a line, without ending, relative to `folder`), or
    those of `split`, where the layout has splits, or all.

    Layouts: camera-intrinsics.txt with NAME.color.jpg and NAME.pose.txt; 7-Scenes, whose depth
    images are converted into `depths` (left out where it is None); what `sld map` or `sld teach
    --bag` made of a bag. SldError names the first file that is missing or cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SldError(f"{folder}: no such folder of frames")
    layout = _layout(folder, depths)
    if list_path:
        names = [name for line in read_list(list_path) for name in layout.named(line)]
    else:
        names = layout.names(split)
    if not names and list_path:
        raise SldError(f"{list_path}: names no frames; expected one name a line")
    if not names:
        raise SldError(
            f"{folder}: holds no frames; expected NAME.color.jpg with NAME.pose.txt, or the layout "
            "of 7-Scenes; images without poses are for `sld map`"
        )
    return [layout.frame(name) for name in names]


def _layout(folder: Path, depths: Path | None) -> Layout:
    if (folder / FILE).exists():
        return StoredFrames(folder)
    if is_seven_scenes(folder):
        return SevenScenes(folder, depths)
    return PosedFolder(folder)
