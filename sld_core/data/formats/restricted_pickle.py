"""Pickles of lists, dicts, strings and numbers, read without running what a pickle can ask for.

A pickle is a program. Here every instruction is looked at before any is followed: only those that
build plain values are allowed, so no name is ever looked up and nothing is called. Tuples are left
out as well: nested ones used as keys of a dict can keep their hash busy for ever. Arrays of numpy
need a name looked up and are refused too."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from sld_core.types import SldError

MAX_BYTES = 64 * 2**20
MAX_STEPS = 4_000_000  # instructions, and values when all references are followed
MAX_DEPTH = 8  # of lists and dicts in each other
PLAIN = frozenset(
    [
        "PROTO",
        "FRAME",
        "MARK",
        "STOP",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "LONG",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GET",
        "BINGET",
        "LONG_BINGET",
    ]
)
CALLS = frozenset(
    [
        "GLOBAL",
        "STACK_GLOBAL",
        "INST",
        "OBJ",
        "REDUCE",
        "BUILD",
        "NEWOBJ",
        "NEWOBJ_EX",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "BINPERSID",
    ]
)
DAMAGE = (
    pickle.UnpicklingError,
    ValueError,
    IndexError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def read_plain(path: Path) -> Any:
    """The value of a pickle file; SldError when it holds anything but lists, dicts, strings,
    numbers, booleans and None."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SldError(f"{path}: {size} bytes; expected at most {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return plain_from_bytes(data)
    except SldError as error:
        raise SldError(f"{path}: {error}") from None


def plain_from_bytes(data: bytes) -> Any:
    """As `read_plain`, of the file's content."""
    _check_instructions(data)
    try:
        value = _Plain(io.BytesIO(data)).load()
    except SldError:
        raise
    except DAMAGE as error:
        raise SldError(f"a damaged pickle ({_first_line(error)})") from None
    _check_values(value)
    return value


def write_plain(value: Any) -> bytes:
    """`value` as a pickle that any Python 2 or 3 reads; SldError for what `read_plain` would
    refuse."""
    _check_values(value)
    return pickle.dumps(value, protocol=2)


class _Plain(pickle.Unpickler):
    """The second lock behind `_check_instructions`."""

    def find_class(self, module: str, name: str):
        raise SldError(f"the pickle asks for {module}.{name}")

    def persistent_load(self, pid):
        raise SldError("the pickle asks for an object outside of it")


def _check_instructions(data: bytes) -> None:
    """SldError unless all instructions are plain, numbers fit 64 bits, and references stay small.

    The unpickler makes room for as many references as the largest index says, so an index must be
    one that was earned."""
    wanted = ""
    try:
        for steps, (code, value, position) in enumerate(pickletools.genops(data)):
            if code.name in CALLS:
                raise SldError(
                    f"a pickle that asks for code at byte {position} ({code.name} "
                    f"{value or wanted}); expected lists, dicts, "
                    "strings and numbers only; convert arrays with .tolist() before pickling, "
                    "and trust no such file "
                    "from strangers"
                )
            if code.name not in PLAIN:
                raise SldError(
                    f"a pickle with {code.name} at byte {position}; expected lists, dicts, "
                    "strings and numbers only"
                )
            if steps >= MAX_STEPS:
                raise SldError(f"a pickle of over {MAX_STEPS} instructions")
            wanted = value if isinstance(value, str) else wanted
            _check_number(code.name, value, steps, len(data))
    except SldError:
        raise
    except DAMAGE as error:
        raise SldError(f"a damaged pickle ({_first_line(error)})") from None


def _check_number(code: str, value, steps: int, size: int) -> None:
    if code in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= value <= steps:
        raise SldError(f"a pickle with reference {value} after {steps} instructions")
    if code == "FRAME" and value > size:
        raise SldError(f"a damaged pickle (a frame of {value} bytes in a file of {size})")
    if isinstance(value, int) and not _fits(value):
        raise SldError("a pickle with a number of over 64 bits")


def _check_values(value: Any) -> None:
    """SldError unless `value` is plain; references count each time they are followed, so that no
    small file unfolds."""
    todo, seen = [(value, 0)], 0
    while todo:
        value, depth = todo.pop()
        seen += 1
        if seen > MAX_STEPS or depth > MAX_DEPTH:
            raise SldError(f"values nested over {MAX_DEPTH} deep, or over {MAX_STEPS} of them")
        if type(value) is list:
            if len(value) + len(todo) > MAX_STEPS:
                raise SldError(f"over {MAX_STEPS} values")
            todo += [(v, depth + 1) for v in value]
        elif type(value) is dict:
            bad = [k for k in value if type(k) not in (str, int)]
            if bad:
                raise SldError(
                    f"a dict with a key of type {type(bad[0]).__name__}; expected strings"
                )
            todo += [(v, depth + 1) for v in value.values()]
        elif type(value) not in (str, int, float, bool, type(None)):
            raise SldError(
                f"a value of type {type(value).__name__}; expected lists, dicts, strings and "
                "numbers only"
            )
        elif type(value) is int and not _fits(value):
            raise SldError("a number of over 64 bits")


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**64


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
