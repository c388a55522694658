"""How settings are declared, checked, stored and overridden.

A group of settings is a frozen dataclass with a default for every field. Numbers are declared with
`ranged`, words with `chosen`; only booleans and free text (topics, paths, names) stand bare."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from sld_core.types import SldError


def ranged(default, low, high, multiple: int = 1):
    """A number from `low` to `high`, both included; a whole number may have to be a multiple."""
    return field(default=default, metadata={"range": (low, high), "multiple": multiple})


def chosen(default: str, *others: str):
    """A word, one of these."""
    return field(default=default, metadata={"choices": tuple(dict.fromkeys((default, *others)))})


def range_of(kind: type, name: str) -> tuple[float, float]:
    """Lowest and highest value of a setting declared with `ranged`."""
    return kind.__dataclass_fields__[name].metadata["range"]


def from_dict(values: dict[str, Any], kind: type):
    """A configuration from nested plain values; absent keys take their defaults.

    SldError names the whole setting, such as head.hidden, where a key is unknown, a type is wrong
    or a value is out of range."""
    return _changed(kind(), values, "")


def _changed(defaults, values: dict[str, Any], group: str):
    """`defaults` with these values; `group` is the path to them, such as "head."."""
    fields = {f.name: f for f in dataclasses.fields(defaults)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        names = ", ".join(group + name for name in unknown)
        kind = type(defaults).__name__
        raise SldError(f"unknown setting {names}; {kind} has {', '.join(fields)}")
    out = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if not dataclasses.is_dataclass(default):
            out[name] = _checked(group + name, fields[name].metadata, value, default)
        elif isinstance(value, dict):
            out[name] = _changed(default, value, f"{group}{name}.")
        else:
            raise SldError(f"setting {group}{name}: expected a group of settings, got {value!r}")
    return dataclasses.replace(defaults, **out)


def _checked(name: str, metadata, value, default):
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise SldError(f"setting {name}: expected {kind} like {default!r}, got {value!r}")
    if type(value) in (int, float):
        low, high = metadata["range"]
        if not (math.isfinite(value) and low <= value <= high):
            raise SldError(f"setting {name}={value}: expected a number from {low} to {high}")
        if value % metadata["multiple"] and type(value) is int:
            raise SldError(f"setting {name}={value}: expected a multiple of {metadata['multiple']}")
    if value not in metadata.get("choices", (value,)):
        choices = ", ".join(metadata["choices"])
        raise SldError(f"setting {name}={value!r}: expected one of {choices}")
    return value


def to_dict(config) -> dict[str, Any]:
    """Nested plain values, ready for JSON; `from_dict` reads them back equal."""
    return dataclasses.asdict(config)


def override(config, settings: list[str]):
    """`config` with settings given as text, such as "head.hidden=512"; SldError where a name is
    unknown or a value unreadable."""
    values = to_dict(config)
    for setting in settings:
        path, _, text = setting.partition("=")
        *groups, name = path.split(".")
        group = values
        for key in groups:
            group = group.get(key) if isinstance(group, dict) else None
        if not isinstance(group, dict) or isinstance(group.get(name), dict) or name not in group:
            raise SldError(f"setting {setting!r}: no such setting; {_suggestion(path, values)}")
        group[name] = _parse(setting, text, group[name])
    return from_dict(values, type(config))


def _suggestion(path: str, values: dict[str, Any]) -> str:
    """The settings that may have been meant, of the same name or a similar one, or an example."""
    known = dict(_flat(values))
    name = path.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == name]
    if meant := same or difflib.get_close_matches(path, known, n=1, cutoff=0.8):
        return f"did you mean {' or '.join(meant)}?"
    first = next((other for other in known if other.startswith(f"{path}.")), next(iter(known)))
    return f"expected NAME=VALUE, such as {first}={known[first]}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its groups, such as head.hidden, and its value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse(setting: str, text: str, default):
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise SldError(f"setting {setting!r}: expected true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise SldError(f"setting {setting!r}: expected {kind}, such as {default}") from None
