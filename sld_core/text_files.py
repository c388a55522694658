"""Reading text files that a user names, with limits that keep a hostile or mistaken one from filling the memory."""
from __future__ import annotations

from pathlib import Path

from sld_core.types import SldError

MAX_BYTES = 2**20


def read_text(path: Path, max_bytes: int = MAX_BYTES, expected: str = "a small text file") -> str:
    """The text (UTF-8) of a regular file of at most `max_bytes`; SldError says what was `expected` of any other."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise SldError(f"{path}: {'a folder' if path.is_dir() else 'a device or pipe'}; expected {expected}")
        if size > max_bytes:
            raise SldError(f"{path}: {size} bytes, more than {max_bytes}; expected {expected}")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)  # files of /proc say they have no bytes
        if len(data) > max_bytes:
            raise SldError(f"{path}: more than {max_bytes} bytes; expected {expected}")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SldError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}); expected {expected}") from None
