"""How settings are declared, checked, stored and overridden: dataclasses whose fields carry ranges
and choices."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Any

from sld_core.types import SldError


def ranged(default, low, high, multiple: int = 1):
    """The field of a number from low to high; of a whole number that must be a multiple."""
    return field(default=default, metadata={"range": (low, high), "multiple": multiple})


def chosen(default: str, *others: str):
    """The field of a word that is one of these."""
    return field(default=default, metadata={"choices": (default, *others)})


# of every number that could ask for endless work or memory; the others may be any finite number
RANGES = {
    "max_side_px": (64, 4096),
    "jpeg_quality": (1, 100),
    "max_frames": (3, 100_000),
    "max_features": (100, 50_000),
    "neighbours": (1, 1000),
    "count": (20, 20_000),
    "min_views": (2, 1000),
    "spacing_shrink": (0.1, 0.95),
    "augmented_passes": (0, 100),
    "background_cells": (0, 100_000),
    "positive_radius_cell": (0.5, 10.0),
    "ignore_radius_cell": (0.5, 20.0),
    "min_scale": (0.1, 1.0),
    "max_scale": (1.0, 10.0),
    "max_tilt_deg": (0.0, 80.0),
    "channels": (1, 4096),
    "hidden": (1, 4096),
    "samples": (1, 10**10),
    "batch": (1, 10**6),
    "prototype_temperature": (1e-3, 10.0),
    "roll_margin_deg": (0.0, 180.0),
    "guided_radius_cell": (0.5, 20.0),
    "max_iterations": (1, 100_000),
    "validation_fraction": (0.0, 0.5),
    "seed": (0, 2**31 - 1),
}
BACKBONES = (
    "lite0",
    "xfeat",
    "lite0+xfeat",
    "resnext101",
    "resnext101-layer3",
    "resnext101-layer2",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "swin-t",
)
CHOICES = {"kind": ("cells", "prototype", "heatmap"), "backbone": BACKBONES}


def from_dict(values: dict[str, Any], kind: type):
    """A configuration from nested plain values; absent keys take their defaults, an unknown key, a
    wrong type or a value out of range raises. Ranges and choices stand in the field's metadata
    (`ranged`, `chosen`), or in RANGES and CHOICES."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SldError(
            f"unknown setting {', '.join(unknown)} in {kind.__name__}; known are {', '.join(known)}"
        )
    defaults = kind()
    out = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise SldError(f"setting {name}: expected a group of settings, got {value!r}")
            out[name] = from_dict(value, type(default))
        else:
            out[name] = _checked(
                known[name],
                float(value) if isinstance(default, float) and type(value) is int else value,
                default,
            )
    return kind(**out)


def _checked(known: dataclasses.Field, value, default):
    name = known.name
    if type(value) is not type(default):
        raise SldError(
            f"setting {name}: expected {type(default).__name__} like {default!r}, got {value!r}"
        )
    low, high = known.metadata.get("range") or RANGES.get(name, (-math.inf, math.inf))
    if type(value) in (int, float) and not (math.isfinite(value) and low <= value <= high):
        raise SldError(f"setting {name}={value}: expected a number from {low} to {high}")
    if (multiple := known.metadata.get("multiple", 1)) > 1 and value % multiple:
        raise SldError(f"setting {name}={value}: expected a multiple of {multiple}")
    choices = known.metadata.get("choices") or CHOICES.get(name, (value,))
    if value not in choices:
        raise SldError(f"setting {name}={value!r}: expected one of {', '.join(choices)}")
    return value


def to_dict(config) -> dict[str, Any]:
    """Nested plain values, ready for JSON; `from_dict` reads them back equal."""
    return dataclasses.asdict(config)


def override(config, settings: list[str]):
    """`config` with settings given as text, such as "head.hidden=512"; unknown names and unreadable
    values raise."""
    values = to_dict(config)
    for setting in settings:
        path, _, text = setting.partition("=")
        *groups, name = path.split(".")
        group = values
        for key in groups:
            group = group.get(key) if isinstance(group, dict) else None
        if not isinstance(group, dict) or isinstance(group.get(name), dict) or name not in group:
            meant = " or ".join(_named(name, values))
            raise SldError(
                f"setting {setting!r}: no such setting; "
                + (
                    f"did you mean {meant}?"
                    if meant
                    else "expected group.name=value, such as head.hidden=256"
                )
            )
        group[name] = _parse(setting, text, group[name])
    return from_dict(values, type(config))


def _named(name: str, values: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings of this name, with the groups that they belong to."""
    here = [prefix + name] if name in values and not isinstance(values[name], dict) else []
    return here + [
        path
        for group, inner in values.items()
        if isinstance(inner, dict)
        for path in _named(name, inner, f"{prefix}{group}.")
    ]


def _parse(setting: str, text: str, default):
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise SldError(f"setting {setting!r}: expected true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise SldError(
            f"setting {setting!r}: expected {type(default).__name__} like {default!r}"
        ) from None
