"""What several commands share: options, and checks of what was given."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from sld_core.config.settings import override
from sld_core.files import write_atomically
from sld_core.runtime import temporary_folder
from sld_core.types import SldError

MIN_WORK_BYTES = 500 * 10**6


def add_frames(parser, required: bool = True) -> None:
    text = (
        "folder of frames: camera-intrinsics.txt, *.color.jpg, *.pose.txt (4x4 camera to world, "
        "metres); or a folder in the layout of 7-Scenes"
    )
    add_path(parser, "--frames", "DIR", text, required=required)
    add_list(parser)


def add_list(parser, what: str = "frames") -> None:
    add_path(parser, "--list", "FILE", f"text file that names the {what} to use (default: all)")


def add_path(parser, option: str, metavar: str, text: str, **more) -> None:
    parser.add_argument(option, type=Path, metavar=metavar, help=text, **more)


def add_device(parser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device, cpu (default) or cuda")


def add_seed(parser) -> None:
    text = "seed of all random choices (default 0)"
    parser.add_argument("--seed", type=int, metavar="S", help=text)


def add_set(parser, example: str) -> None:
    text = f"change a setting, such as {example} (repeatable)"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def configured(defaults, settings: list[str], given: dict[str, object]):
    """`defaults` with the settings of --set, and with the options that were given: their values by
    the names of their settings, None where an option is absent."""
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    return override(defaults, [*settings, *options])


def add_json(parser) -> None:
    add_path(parser, "--json", "FILE", "also write the numbers here")


def write_json(path: Path | None, numbers) -> None:
    """Write the numbers where --json was given."""
    if path is not None:
        write_atomically(path, (json.dumps(numbers, indent=2) + "\n").encode())


def check_writable(output: Path | None, option: str = "--output") -> None:
    """SldError unless the file can be written: before the minutes of work, not after them."""
    if output is None:
        return
    if output.is_dir():
        raise SldError(f"{option} {output} is a folder; expected the name of a file")
    if output.exists() and not output.is_file():
        return  # a device or pipe, such as /dev/stdout: nothing is made beside it
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
    """The validation of a taught scene in words; without centimetres where the scene is not
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
