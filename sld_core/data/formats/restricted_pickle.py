"""Pickles of lists, dicts, texts and numbers, read without running what a pickle can ask for.

A pickle is a program. The unpickler here knows only the instructions that build plain values, and
looks up no name. Tuples are among the unknown ones: nested, as keys of a dict, they can keep their
hash busy for ever."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from sld_core.types import SldError

MAX_BYTES = 8 * 2**20  # some 250,000 names
EXPECTED = "expected lists, dicts, texts and numbers only (convert arrays with .tolist())"
PLAIN = (
    "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 FLOAT "
    "BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
)
NAMES = "GLOBAL STACK_GLOBAL INST"  # known so that `find_class` can say what the pickle asks for


def read_plain(path: Path) -> Any:
    """The value of a pickle file; SldError when it holds anything but lists, dicts, texts, numbers,
    booleans and None. Lists may hold each other, many times over: follow none without a limit."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SldError(f"{path}: {size} bytes; expected at most {MAX_BYTES}")
        return plain_from_bytes(path.read_bytes())
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    except SldError as error:
        raise SldError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def plain_from_bytes(data: bytes) -> Any:
    """As `read_plain`, of the file's content."""
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except SldError:
        raise
    except Exception as error:  # damaged pickles raise anything
        text = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise SldError(f"a damaged pickle, or one of other values ({text}); {EXPECTED}") from None


class _PlainUnpickler(pickle._Unpickler):
    """Python's own unpickler, and not the faster one of C, which makes room for as many references
    as a file says it has."""

    dispatch = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in f"{PLAIN} {NAMES}".split())
    }

    def find_class(self, module: str, name: str):
        raise SldError(f"a pickle that asks for {module[:60]}.{name[:60]}; {EXPECTED}")
