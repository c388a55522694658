"""Files on disk: written whole or not at all; text that a user names is read with limits, so that a
hostile or mistaken file does not fill the memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sld_core.types import SldError

MAX_TEXT_BYTES = 2**20


def read_text(
    path: Path, max_bytes: int = MAX_TEXT_BYTES, expected: str = "a small text file"
) -> str:
    """The text (UTF-8) of a regular file of at most `max_bytes`; SldError says what was `expected`
    of any other."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise SldError(
                f"{path}: {'a folder' if path.is_dir() else 'a device or pipe'}; expected "
                f"{expected}"
            )
        if size > max_bytes:
            raise SldError(f"{path}: {size} bytes, more than {max_bytes}; expected {expected}")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)  # files of /proc say they have no bytes
        if len(data) > max_bytes:
            raise SldError(f"{path}: more than {max_bytes} bytes; expected {expected}")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SldError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}); "
            f"expected {expected}"
        ) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename. A link stays a link, and a device a
    device."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        try:
            path.write_bytes(data)
            return
        except OSError as error:
            raise SldError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SldError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise SldError(f"{path}: cannot be written ({error.strerror})") from None
