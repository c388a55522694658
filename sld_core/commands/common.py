"""What several commands share: options, and checks of what was given."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from sld_core.runtime import temporary_folder
from sld_core.types import SldError

MIN_WORK_BYTES = 500 * 10**6


def add_frames(parser, required: bool = True) -> None:
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        required=required,
        help="folder of frames: camera-intrinsics.txt, *.color.jpg, *.pose.txt (4x4 camera to "
        "world, metres); or a folder in the layout of 7-Scenes",
    )
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="text file that names the frames to use (default: all)",
    )


def add_device(parser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device, cpu (default) or cuda")


def check_writable(output: Path, option: str = "--output") -> None:
    """Before the minutes of work, not after."""
    if output.is_dir():
        raise SldError(f"{option} {output} is a folder; expected the name of a file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise SldError(f"{option} {output}: cannot write there ({error.strerror})") from None


def list_path(given: Path | None, folder: Path | None) -> Path | None:
    """The file that --list names: as given, or inside the folder whose images it lists."""
    if given is None or given.exists():
        return given
    inside = folder / given
    if not inside.exists():
        raise SldError(f"--list {given}: no such file here or in {folder}")
    return inside


def held_out_text(validation: dict) -> str:
    """What the check of teaching said, in words; without centimetres where the scene is not
    metric."""
    recall = validation.get("recall_5cm_5deg")
    found = (
        f"{validation.get('accepted', 0)} localized"
        if recall is None
        else f"{recall:.0%} within 5 cm / 5 deg"
    )
    return f"{validation['queries']}, {found}"


@contextmanager
def work_folder(given: Path | None):
    if given is not None:
        try:
            given.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SldError(f"--work {given}: cannot be made a folder ({error.strerror})") from None
        yield given
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < MIN_WORK_BYTES:
        raise SldError(
            f"{tempfile.gettempdir()} has {free / 1e6:.0f} MB free, {MIN_WORK_BYTES / 1e6:.0f} "
            "MB are needed for intermediate "
            "results; free some, or name another place with --work DIR"
        )
    with temporary_folder() as folder:
        yield folder
