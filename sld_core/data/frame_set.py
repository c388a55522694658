"""A frame set on disk: a folder of images (and depth images) with one frames.json."""

from __future__ import annotations

import json
from pathlib import Path

from sld_core.data.frame_json import check_images, frames_from_dict, frames_to_dict
from sld_core.files import write_atomically
from sld_core.types import Frame, FrameSet, SldError

FILE, FORMAT = "frames.json", "sld frames 1"


def write_frame_set(folder: Path, frame_set: FrameSet) -> None:
    """Write `folder`/frames.json, atomically; the images and depth images are there already."""
    content = {
        "format": FORMAT,
        "intrinsics_known": frame_set.intrinsics_known,
        "world_frame": frame_set.world_frame,
        "world_z_up": frame_set.world_z_up,
        **frames_to_dict(frame_set.frames, folder),
        "rejected": frame_set.rejected,
    }
    write_atomically(Path(folder) / FILE, json.dumps(content, indent=1).encode())


def read_frame_set(folder: Path) -> FrameSet:
    """What `write_frame_set` wrote; SldError in one line for the first thing that is missing or
    damaged."""
    folder = Path(folder)
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise SldError(f"format {content['format']!r}; expected {FORMAT!r}")
        frames = frames_from_dict(content, folder)
        check_images(frames)
        return FrameSet(
            frames,
            content["intrinsics_known"],
            content["world_frame"],
            content["world_z_up"],
            content["rejected"],
        )
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    except SldError as error:
        raise SldError(f"{path}: {error}; make the frames again") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SldError(f"{path}: damaged ({str(error)[:100]}); make the frames again") from None


class StoredFrames:
    """The frames with poses of a frame set, by their names (see frame_folder.Layout)."""

    def __init__(self, folder: Path):
        frame_set = read_frame_set(folder)
        if not frame_set.intrinsics_known:
            raise SldError(f"{folder}: the camera of these frames is not calibrated")
        self._folder = folder
        self._frames = {f.name: f for f in frame_set.frames if f.T_world_camera is not None}

    def names(self, split: str = "") -> list[str]:
        return list(self._frames)

    def named(self, line: str) -> list[str]:
        return [line]

    def frame(self, name: str) -> Frame:
        if name not in self._frames:
            raise SldError(f"{self._folder}: has no frame {name!r} with a pose")
        return self._frames[name]
