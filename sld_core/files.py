"""Files on disk. They are written whole or not at all; text files of a user are read with limits,
so that a hostile or mistaken file does not fill the memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sld_core.types import SldError

MAX_TEXT_BYTES = 2**20


def read_text(
    path: Path, max_bytes: int = MAX_TEXT_BYTES, expected: str = "a small text file"
) -> str:
    """The text (UTF-8) of a regular file of at most `max_bytes`; SldError with `expected` for any
    other."""
    try:
        path.stat()  # raises where there is nothing, or no permission
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or pipe"
            raise SldError(f"{path}: {kind}; expected {expected}")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise SldError(f"{path}: more than {max_bytes} bytes; expected {expected}")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise SldError(f"{path}: cannot be read ({reason}); expected {expected}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path`, then rename it. A link stays a link, and a device a
    device; SldError where it cannot be written."""
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
