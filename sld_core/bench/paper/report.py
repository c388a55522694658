"""The results of `sld bench paper` as metrics.json, Markdown and pictures, with the speed-up to
equal recall."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from sld_core import html
from sld_core.commands.common import write_json
from sld_core.files import write_atomically
from sld_core.stages import Done

Curve = Sequence[Sequence[float]]  # (seconds, recall at 5 cm / 5 deg), in order of time

COLUMNS = (  # heading, key of a row, how to print the value
    ("scene", "scene", "{}"),
    ("method", "method", "{}"),
    ("training s", "train_s", "{:.0f}"),
    ("of which buffer", "fill_s", "{:.0f}"),
    ("5 cm/5 deg", "recall_5cm_5deg", "{:.1%}"),
    ("2 cm/2 deg", "recall_2cm_2deg", "{:.1%}"),
    ("accepted", "accepted", "{:d}"),
    ("wrong fixes", "wrong_fixes", "{:d}"),
    ("queries", "queries", "{:d}"),
    ("median cm", "median_cm", "{:.2f}"),
    ("median deg", "median_deg", "{:.2f}"),
    ("MB", "mb", "{:.1f}"),
    ("ms/query", "query_ms", "{:.0f}"),
)
HEADLINES = {  # name in metrics.json -> method
    "paper_head": "paper",
    "default_head": "cells",
    "sld_star": "sld_star",
    "prototype_head": "prototype",
    "coordinate_head": "coordinates",
    "paper_head_multi_scene_backbone": "paper, multi-scene backbone",
    "default_head_multi_scene_backbone": "cells, multi-scene backbone",
}
IN_BOTH = ("sld_star", "cells")  # methods of Table 1 that Table 2 shows again
LEVELS = (0.2, 0.4, 0.6, 0.8)
BOUND_RECALL = 0.4  # for a lower bound of the speed-up where the slow method never reached it


def first_reached(curve: Curve, recall: float) -> float | None:
    """Seconds until `curve` first reaches this recall; None if it never does."""
    return next((float(seconds) for seconds, value in curve if value >= recall), None)


def speedup(slow: Curve, fast: Curve, recall: float | None = None) -> dict[str, float | None]:
    """How much faster `fast` reaches `recall` (default: the best of `slow`) than `slow` does.

    `speedup` is None where either does not reach it, or slow found nothing at all."""
    recall = max((value for _, value in slow), default=0.0) if recall is None else recall
    slow_s = first_reached(slow, recall) if recall > 0 else None
    fast_s = first_reached(fast, recall) if recall > 0 else None
    ratio = slow_s / fast_s if slow_s and fast_s else None
    return {"recall": recall, "slow_s": slow_s, "fast_s": fast_s, "speedup": ratio}


def metrics(done: dict[str, Done], first_scene: str, about: dict) -> dict:
    """All numbers that steps found, preceded by the headlines of the first scene; None where a step
    is missing."""
    found = {name: step.found for name, step in done.items()}
    rows = [row for step in found.values() for row in step.get("rows", ())]
    own = {row["scene"] for row in rows if row["table"] == 2}
    rows += [
        {**row, "table": 2}
        for row in rows
        if row["table"] == 1 and row["scene"] in own and row["method"] in IN_BOTH
    ]
    recalls = {
        row["method"]: row["recall_5cm_5deg"]
        for row in reversed(rows)  # the first of several rows counts
        if row["scene"] == first_scene
    }
    out = {f"{name}_recall_5cm_5deg": recalls.get(method) for name, method in HEADLINES.items()}
    curves = {}
    for step in found.values():
        curves |= step.get("curves", {})
    slow = curves.get("sld_star", ())
    for name, key in (
        ("cells", ""),
        ("cells, buffer filled before", "_head_only"),
        ("paper", "_paper_head"),
    ):
        compared = speedup(slow, curves.get(name, ()))
        out[f"speedup_to_equal_recall{key}"] = compared["speedup"]
        out[f"equal_recall{key}"] = {k: v for k, v in compared.items() if k != "speedup"}
    fast_s = first_reached(curves.get("cells", ()), BOUND_RECALL)
    out["speedup_at_least"] = None
    if slow and fast_s and first_reached(slow, BOUND_RECALL) is None:
        out["speedup_at_least"] = slow[-1][0] / fast_s
    return (
        out
        | about
        | {
            "rows": rows,
            "curves": curves,
            "fill": found.get("fill", {}).get("fill"),
            "step_seconds": {name: step.seconds for name, step in done.items()},
        }
    )


def write(
    folder: Path,
    numbers: dict,
    scaled_down: Sequence[str],
    missing: dict[str, str],
    figures: Sequence[Path] = (),
) -> None:
    """metrics.json, paper.md and its pictures in `folder`."""
    pictures = [
        (
            "Recall over seconds of training",
            _recall_picture(folder / "recall.png", numbers["curves"]),
        ),
        ("Filling the buffer", _fill_picture(folder / "fill.png", numbers["fill"])),
        *(("Training the multi-scene backbone (Figure 7)", path) for path in figures),
    ]
    write_json(folder / "metrics.json", numbers)
    linked = [(title, path.relative_to(folder).as_posix()) for title, path in pictures if path]
    write_atomically(folder / "paper.md", markdown(numbers, scaled_down, missing, linked).encode())


def markdown(
    numbers: dict,
    scaled_down: Sequence[str],
    missing: dict[str, str],
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """The page: both tables, seconds to equal recall, the buffer fill, what was scaled down and
    what is missing."""
    rows = numbers["rows"]
    parts = [
        "# The paper's comparisons, measured here",
        f"Preset {numbers['preset']}, {numbers['machine']}.",
        "## Table 1: a scene that the backbone has not seen",
        table([r for r in rows if r["table"] == 1]),
        "## Table 2: the scenes that the multi-scene backbone was trained on",
        table([r for r in rows if r["table"] == 2]),
        "## Seconds of training to equal recall",
        *_equal_recall_text(numbers),
    ]
    if numbers["fill"]:
        parts += [
            "## Buffer fill against processes",
            _grid(["processes", "s", "speed-up"], _fill_rows(numbers["fill"])),
            "Starting the processes is included. The processes share the threads that a single one "
            "uses alone.",
        ]
    parts += [f"## {title}\n\n![{title}]({name})" for title, name in pictures]
    parts += ["## What was scaled down", "\n".join(f"- {line}" for line in scaled_down)]
    if missing:
        parts += [
            "## What is missing",
            "\n".join(f"- {name}: {reason}" for name, reason in missing.items()),
        ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[dict]) -> str:
    """Rows of methods as Markdown; the best recall of each scene in bold."""
    if not rows:
        return "(not measured)"
    best = {}
    for row in rows:
        best[row["scene"]] = max(row["recall_5cm_5deg"], best.get(row["scene"], 0.0))

    def cell(row: dict, key: str, form: str) -> str:
        if row.get(key) is None:
            return "-"
        text = form.format(row[key])
        is_best = key == "recall_5cm_5deg" and row[key] == best[row["scene"]] > 0
        return f"**{text}**" if is_best else text

    return _grid(
        [heading for heading, *_ in COLUMNS],
        [[cell(row, key, form) for _, key, form in COLUMNS] for row in rows],
    )


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *rows]
    )


def _equal_recall_text(numbers: dict) -> list[str]:
    curves = numbers["curves"]
    if not curves.get("sld_star"):
        return ["(not measured)"]
    slow = curves["sld_star"]
    others = {name: curve for name, curve in curves.items() if name != "sld_star"}
    best, total_s = max(value for _, value in slow), slow[-1][0]
    rows = []
    for level in sorted({*LEVELS, best} - {0.0}):
        slow_s = first_reached(slow, level)
        times = [first_reached(curve, level) for curve in others.values()]
        rows.append(
            [
                f"{level:.1%}",
                f"{slow_s:.0f} s" if slow_s else f"not in {total_s:.0f} s",
                *(_time_and_speedup(fast_s, slow_s, total_s) for fast_s in times),
            ]
        )
    parts = [
        "Seconds of training, including the buffer fill unless stated, without evaluation. Every "
        "dot of cells is a training of that length; SLD\\* and the paper's head are evaluated "
        "during one training."
    ]
    if best == 0:
        parts.append(
            f"SLD\\* localized no query within 5 cm / 5 deg in {total_s:.0f} s of training: there "
            "is no equal recall to compare at, only a lower bound of the speed-up."
        )
    return [*parts, _grid(["recall 5 cm/5 deg", "SLD\\*", *others], rows)]


def _time_and_speedup(fast_s: float | None, slow_s: float | None, total_s: float) -> str:
    if not fast_s:
        return "not reached"
    if not slow_s:
        return f"{fast_s:.1f} s (over {total_s / fast_s:.0f}x)"
    return f"{fast_s:.1f} s ({slow_s / fast_s:.0f}x)"


def _fill_rows(fill: Sequence[dict]) -> list[list[str]]:
    return [
        [str(f["processes"]), f"{f['seconds']:.1f}", f"{fill[0]['seconds'] / f['seconds']:.2f}"]
        for f in fill
    ]


def _recall_picture(path: Path, curves: dict[str, Curve]) -> Path | None:
    if not curves:
        return None
    figure, axes = html.figure_axes(8.4, 4.2)
    for name, curve in curves.items():
        axes.plot([s for s, _ in curve], [recall for _, recall in curve], ".-", label=name)
    axes.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="recall at 5 cm / 5 deg",
        ylim=(-0.02, 1.02),
    )
    axes.legend(frameon=False)
    return _saved(figure, path)


def _fill_picture(path: Path, fill: Sequence[dict] | None) -> Path | None:
    if not fill:
        return None
    figure, axes = html.figure_axes(4.2, 3)
    axes.bar([str(f["processes"]) for f in fill], [f["seconds"] for f in fill])
    axes.set(xlabel="processes", ylabel="seconds")
    return _saved(figure, path)


def _saved(figure, path: Path) -> Path:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_atomically(path, data.getvalue())
    return path
