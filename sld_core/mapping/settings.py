"""Which settings each stage of a map depends on, by the names that --set takes, and which of them
an earlier run had otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sld_core.config.mapping import MapConfig

GROUPS = {
    "frames": ("frames", "bag"),
    "landmarks": ("landmarks", "split"),
    "dataset": (),
}  # of other stages: the one of its name


def settings_of(stage: str, config: MapConfig, model: Path | str | None) -> dict[str, Any]:
    """Name, such as landmarks.count -> value, of everything that is not an earlier stage or an
    image."""
    values = asdict(config)
    found = {
        name: value
        for group in GROUPS.get(stage, (stage,))
        for name, value in _flat(group, values[group])
    }
    if stage not in ("frames", "dataset"):
        found["seed"] = config.seed
    return found | ({"--model": None if model is None else str(model)} if stage == "depth" else {})


def fingerprint_of(model: Path | str | None) -> list[Any]:
    """What tells one monocular network from another: of files and folders the path, size and time
    of each file, with the settings that may lie beside an ONNX file; of a name on the hub the
    name."""
    path = Path(model or "")
    try:
        if model is None or not path.exists():
            return [str(model)]
        files = sorted(path.iterdir()) if path.is_dir() else [path, Path(f"{path}.json")]
        return [
            (str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()
        ]
    except OSError:  # whoever loads it says why it cannot be read
        return [str(model)]


def gone_back(stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that the run `before` changed and the one of `now` leaves at their defaults, in
    words."""
    default = settings_of(stage, MapConfig(), None)
    return [
        f"{name} was {before[name]!r} and is "
        f"{'not given' if value is None else f'the default {value!r}'}"
        for name, value in now.items()
        if name in before and before[name] != value == default[name]
    ]


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        pair
        for name, value in values.items()
        for pair in (
            _flat(f"{prefix}.{name}", value)
            if isinstance(value, Mapping)
            else [(f"{prefix}.{name}", value)]
        )
    ]
