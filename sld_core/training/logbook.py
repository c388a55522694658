"""The log of a training run: CSV rows (and TensorBoard, where it is installed), and curves of
them."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sld_core.files import write_atomically
from sld_core.types import SldError

FILE = "log.csv"
ALL = "all"  # the scene of rows that are means over scenes
COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "scene",
    "loss",
    "learning_rate",
    "found",
    "precision",
    "pixel_error",
    "recall",
)
PANELS = (
    ("loss", "training loss", "log"),
    ("pixel_error", "median pixel error, validation", "log"),
    ("recall", "recall at 5 cm / 5 deg, validation", "linear"),
)
# colours that the colour-blind can tell apart (Okabe and Ito)
COLOURS = ("#0072b2", "#cc79a7", "#009e73", "#56b4e9", "#e69f00", "#d55e00")
FAINT = {"color": "#a9b2bb", "lw": 0.6}  # for all lines where there are not enough colours
POINTS = 40  # of a line, at most

Line = tuple[np.ndarray, np.ndarray]  # epochs, values


class Logbook:
    """Appends rows to `folder`/log.csv. A run that is resumed at `resume_step` first drops the rows
    of later steps, so that the file is the same as without the interruption."""

    def __init__(self, folder: Path, resume_step: int = 0):
        self.path = folder / FILE
        kept = []
        if resume_step and self.path.exists():
            kept = [row for row in read(self.path) if int(row["step"]) <= resume_step]
        table = io.StringIO()
        self._writer(table).writeheader()
        self._writer(table).writerows(kept)
        write_atomically(self.path, table.getvalue().encode())
        self._board = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=resume_step + 1 if resume_step else None,
                flush_secs=10,
            )

    def write(self, step: int, epoch: float, seconds: float, scene: str, **values: float) -> None:
        """Append one row at once; `values` are of COLUMNS, and those not given stay empty."""
        row = {
            "step": step,
            "epoch": f"{epoch:.4f}",
            "seconds": f"{seconds:.2f}",
            "scene": scene,
            **values,
        }
        with open(self.path, "a", newline="") as file:
            self._writer(file).writerow(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{name}/{scene}", value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    @staticmethod
    def _writer(file) -> csv.DictWriter:
        return csv.DictWriter(file, COLUMNS, lineterminator="\n")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log.csv, as text, without a last line that was cut short."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SldError(f"{path}: cannot be read ({error})") from None
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    incomplete = any(None in row or None in row.values() for row in rows)
    if not text.startswith(",".join(COLUMNS)) or incomplete:
        raise SldError(f"{path}: expected a table with the columns {', '.join(COLUMNS)}")
    return rows


def curves(files: Sequence[Path], png: Path) -> None:
    """Draw loss, pixel error and recall over the epochs, a line per scene (the paper's Figure 7).

    Several runs are labelled with the names of their folders. Among more lines than colours only
    the mean stands out."""
    from matplotlib.figure import Figure  # takes half a second, and training does not need it

    panels = [_lines(files, name) for name, _, _ in PANELS]
    labels = sorted({label for lines in panels for label in lines})
    colour = dict(zip(labels, COLOURS)) if len(labels) <= len(COLOURS) else {}
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, lines, (name, title, scale) in zip(figure.subplots(1, len(PANELS)), panels, PANELS):
        for label, (x, y) in sorted(lines.items()):
            if colour:
                axes.plot(x, y, ".-", color=colour[label], label=label, lw=1.4, ms=4)
            else:
                axes.plot(x, y, **FAINT)
        if lines and not colour:
            axes.plot(*_mean(lines), color=COLOURS[0], lw=2, label=f"mean of {len(lines)}")
        if any(y.min() <= 0 for _, y in lines.values()):
            scale = "linear"
        axes.set(title=title, xlabel="epoch", yscale=scale)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if scale == "log" else "")
        if name == "recall":
            axes.set_ylim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    if labels:  # in the first panel: outside of all takes matplotlib 3.7, Ubuntu 24.04 has 3.6
        figure.axes[0].legend(frameon=False, fontsize="small")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=120, format="png")


def _lines(files: Sequence[Path], name: str) -> dict[str, Line]:
    """The line of each scene of each run; neighbouring rows are averaged where there are many."""
    found = defaultdict(list)
    for file in files:
        run = f"{Path(file).resolve().parent.name}: " if len(files) > 1 else ""
        for row in read(file):
            if row["scene"] != ALL and row[name] and math.isfinite(float(row[name])):
                found[run + row["scene"]].append((float(row["epoch"]), float(row[name])))
    return {label: _thinned(np.array(points)) for label, points in found.items()}


def _thinned(points_N2: np.ndarray) -> Line:
    parts = np.array_split(points_N2, min(len(points_N2), POINTS))
    means_P2 = np.array([part.mean(0) for part in parts])
    return means_P2[:, 0], means_P2[:, 1]


def _mean(lines: dict[str, Line]) -> Line:
    """The mean line, over the epochs that all lines have."""
    first = max(x[0] for x, _ in lines.values())
    last = min(x[-1] for x, _ in lines.values())
    at = np.linspace(first, last, POINTS)
    return at, np.mean([np.interp(at, x, y) for x, y in lines.values()], axis=0)
